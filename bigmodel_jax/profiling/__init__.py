"""Where the time of a step goes: a trace of some steps, divided among operations, modules and kinds."""
