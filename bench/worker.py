"""The door through which `bench check` enters the code of any commit: its name and `serve` stay for ever."""

from bench.sides.session import serve as serve
