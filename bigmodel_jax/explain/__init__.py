"""What a network does with one input: attention, attributions, what each layer says, what patching it changes."""
