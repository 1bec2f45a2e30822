"""One file per sub-command of `bench`; each holds a click command named `command`."""
