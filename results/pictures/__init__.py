"""Pictures of results, all in one style, by matplotlib without pyplot.

Every function returns a Figure of its own: no window opens, no figure is kept, and matplotlib's settings are afterwards
what they were. The same figure saved twice gives the same bytes. Accuracies come in as fractions and are drawn in
percent.
"""
