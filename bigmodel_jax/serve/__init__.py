"""Serves a trained model over HTTP with OpenAI's interface.

The texts are generated in the engine's slots. Everything that a client can send has a limit.
"""
