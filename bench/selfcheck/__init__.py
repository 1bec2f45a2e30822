"""How often `bench check` errs: real traces of equal code, decisions resampled from them, and other tools' rules."""
