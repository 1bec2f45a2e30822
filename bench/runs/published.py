"""What a study published for a run, as the row of a comparison shows it."""

from models.training.recipe import Published
from results.runs import Published as PublishedRow


def published_row(said: Published) -> PublishedRow | None:
    """The [published] table of a recipe for a run's summary; None where it names no study."""
    if not said.study:
        return None
    return PublishedRow(
        study=said.study,
        top1=said.top1,
        top1_best=said.top1_best,
        epochs=said.epochs,
        seconds=said.seconds,
        hardware=said.hardware or None,
        source=said.source or None,
        defects=said.defects,
        note=said.note or None,
    )
