"""The field's standard metrics by name: of class labels, numbers, texts and boxes."""
