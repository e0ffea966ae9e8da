"""Draws product pictures, trains the embedded model `atelier-tiny` on them, and exports it to ONNX."""
