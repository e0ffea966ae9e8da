"""Published models as bundles: reads diffusers folders and single-file checkpoints, writes checked ONNX graphs."""
