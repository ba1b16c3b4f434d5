"""Mixture of experts: routing, the experts' products, and the exchange between devices."""
