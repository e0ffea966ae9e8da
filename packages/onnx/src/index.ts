/** Reading ONNX graphs without their weights. */
export { type ExternalData, OnnxError, type OnnxGraph, type OnnxValue, readOnnxGraph } from "./read-graph.ts";
