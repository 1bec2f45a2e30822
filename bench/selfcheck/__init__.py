"""How often `bench check` errs: recorded traces, decisions drawn from them, other tools' rules."""
