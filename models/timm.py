"""Networks of the optional timm package, as `timm:NAME`."""

from types import ModuleType

from torch import nn

from models.code import module
from models.dropout import check_probability
from models.errors import unknown
from models.names import TIMM, Name


def _timm(name: str) -> ModuleType:
    # The one that lies here, where this is timm's own repository.
    timm = module(Name(f"{TIMM}{name}"))
    if not timm.is_model(name):
        raise unknown("timm model", name, timm.list_models(), "timm.list_models() names them all")
    return timm


def build(name: str, classes: int = 1000, *, head_dropout: float | None = None, **arguments: object) -> nn.Module:
    """timm's network `name` with random weights: images [B, 3, H, W] -> logits [B, classes].

    Args:
        name: a name of `timm.list_models()`.
        classes: outputs.
        head_dropout: probability of dropout before the last layer (timm's `drop_rate`); None leaves its own.
        **arguments: of timm's own, such as drop_path_rate.

    Raises:
        ModelError: timm does not know the name.
        TypeError: the network does not know an argument.
    """
    timm = _timm(name)
    if head_dropout is not None:
        check_probability("head_dropout", head_dropout)
        arguments["drop_rate"] = head_dropout
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, **arguments)
    return model


def default_size(name: str) -> int:
    """The height in pixels that timm lists first for `name`; 224 where it lists none.

    Raises:
        ModelError: timm does not know the name.
    """
    configuration = _timm(name).models.get_pretrained_cfg(name)
    return int(configuration.input_size[1]) if configuration is not None else 224
