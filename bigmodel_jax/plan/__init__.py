"""Plan a run before renting the machine: compile the train step for absent devices and cost it."""
