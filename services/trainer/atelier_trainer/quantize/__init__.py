"""INT8 bundles: weights in eight bits per output channel, except those layers that the pictures miss most.

`weights` is the arithmetic, `graph` puts it into ONNX graphs, `sensitivity` measures what each layer's eight bits cost,
`keep_list` decides which stay in float, `bundle` reads and writes folders, `runner` makes pictures with them and `report`
compares those. Nothing here knows torch's modules: any bundle can be quantised, wherever it was exported.
"""
