/** The wire contract: every message and service of atelier/v1. Imports nothing of ours. */
export * from "./gen/atelier/v1/denoise_state_pb.ts";
export * from "./gen/atelier/v1/error_pb.ts";
export * from "./gen/atelier/v1/generation_pb.ts";
export * from "./gen/atelier/v1/generation_service_pb.ts";
export * from "./gen/atelier/v1/job_pb.ts";
export * from "./gen/atelier/v1/worker_pb.ts";
