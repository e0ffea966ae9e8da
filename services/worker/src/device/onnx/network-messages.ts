import type { InferenceSession } from "onnxruntime-node";

export type TensorType = "float32" | "float16" | "int64" | "int32";

export interface TensorSpec {
  readonly type: TensorType;
  readonly dims: readonly number[];
}

/** A tensor's values over memory that both threads see: nothing is copied between them. */
export interface SharedTensor extends TensorSpec {
  readonly buffer: SharedArrayBuffer;
}

/** What a network's thread starts with. */
export interface NetworkData {
  readonly path: string;
  readonly options: InferenceSession.SessionOptions;
  /** A U-Net's graph that takes one timestep for its batch is rewritten to take one for each row. */
  readonly timestepPerRow?: boolean;
}

/** The tensors of one shape of call; made once and used again. */
export interface BindingSpec {
  readonly feeds: Readonly<Record<string, SharedTensor>>;
  readonly outputs: readonly string[];
}

export type ToNetwork =
  /** `binding` comes with the first run of its id. */
  | { readonly type: "run"; readonly id: number; readonly binding?: BindingSpec }
  | { readonly type: "forget"; readonly id: number }
  | { readonly type: "close" };

export type FromNetwork =
  | {
      readonly type: "opened";
      readonly inputs: readonly InferenceSession.ValueMetadata[];
      readonly outputs: readonly InferenceSession.ValueMetadata[];
      /** Why the graph could not be rewritten. */
      readonly note?: string;
    }
  | { readonly type: "not-opened"; readonly message: string }
  /** `outputs` comes with the first run of a binding: from then on the values are written there. */
  | { readonly type: "ran"; readonly outputs?: Readonly<Record<string, SharedTensor>> }
  | { readonly type: "failed"; readonly message: string };
