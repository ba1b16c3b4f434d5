"""Uses trained models: generates text and images, and transcribes recordings."""
