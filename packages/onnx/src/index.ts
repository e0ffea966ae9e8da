/** Reading and rewriting ONNX graphs without touching their weights. `proto` holds the messages themselves, for whoever makes a graph. */
export * as proto from "../gen/onnx_pb.ts";
export { type PerRowTimestep, perRowTimestep } from "./per-row-timestep.ts";
export { type ExternalData, OnnxError, type OnnxGraph, type OnnxValue, readOnnxGraph } from "./read-graph.ts";
