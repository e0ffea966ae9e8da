import { fileURLToPath } from "node:url";

/** The model that tests run on: the embedded one, or another of its layout and id, to try a model before it goes in. */
export const TEST_BUNDLE =
  process.env["ATELIER_TEST_BUNDLE"] ??
  fileURLToPath(new URL("../../../../deploy/models/atelier-tiny", import.meta.url));
