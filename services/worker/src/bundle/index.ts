/** Reading a model folder and finding it whole. Knows nothing of sessions or threads. */
export { type Bundle, readBundle } from "./bundle.ts";
export type { BundleGraphs } from "./graphs.ts";
export type { BundleManifest } from "./manifest.ts";
