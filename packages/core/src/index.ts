/** What every service knows. No I/O; imports no other package of ours. */
export { API_KEY_HASH, type ApiKey, hashApiKey, newApiKey, readApiKey, sameHash } from "./api-key.ts";
export { type Clock, ManualClock, preciseClock, systemClock } from "./clock.ts";
export { ConfigError, fromEnv, readConfig } from "./config.ts";
export { contentDisposition } from "./content-disposition.ts";
export { Deadline } from "./deadline.ts";
export { type Canonical, canonicalDigest, canonicalText, sha256 } from "./digest.ts";
export { ERROR_CODES, type ErrorCode, isErrorCode, ServingError, toServingError } from "./errors.ts";
export { InvariantError, invariant } from "./invariant.ts";
export { checkPromptText, PROMPT_BYTES_MAX, type PromptTextRules } from "./prompt-text.ts";
export { newId, newSeed, type Random, seededRandom, systemRandom } from "./random.ts";
