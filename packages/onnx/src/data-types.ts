/** DataType of the ONNX standard, as onnxruntime-node spells them. */
export const ELEMENT_TYPES: ReadonlyMap<number, string> = new Map([
  [1, "float32"],
  [2, "uint8"],
  [3, "int8"],
  [4, "uint16"],
  [5, "int16"],
  [6, "int32"],
  [7, "int64"],
  [8, "string"],
  [9, "bool"],
  [10, "float16"],
  [11, "float64"],
  [12, "uint32"],
  [13, "uint64"],
  [16, "bfloat16"],
]);

export const FLOAT32 = 1;
export const INT32 = 6;
export const INT64 = 7;
export const FLOAT16 = 10;
export const FLOAT64 = 11;
