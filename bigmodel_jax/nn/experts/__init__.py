"""Mixture of experts: routing, the products of the experts, and the way of tokens between devices."""
