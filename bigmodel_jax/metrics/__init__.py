"""What the field measures, each metric under its name: of logits and labels, of numbers, of texts, of boxes."""
