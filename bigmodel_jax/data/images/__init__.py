"""Image data: classification, captions, questions, segmentation, detection, and augmentation."""
