"""A trained model behind HTTP: OpenAI's interface over the engine's slots, with limits on all that a client can send."""
