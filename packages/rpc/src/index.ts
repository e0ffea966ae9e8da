/** What both ends of a gRPC call share: definitions, errors as statuses, channel options, certificates. */
export { type CallContext, headersOf, metadataOf, REQUEST_ID_METADATA } from "./call-context.ts";
export { channelOptions } from "./channel-options.ts";
export { errorFromStatus, statusOf } from "./error-status.ts";
export { reflectionOf } from "./reflection.ts";
export { serviceDefinition } from "./service-definition.ts";
export { type NamedFile, type TlsFileNames, TlsFiles, type TlsIdentity } from "./tls-files.ts";
