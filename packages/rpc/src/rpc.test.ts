import { ERROR_CODES, ServingError } from "@atelier/core";
import { WorkerService } from "@atelier/proto";
import { Metadata, type ServiceError, status } from "@grpc/grpc-js";
import { describe, expect, it } from "vitest";
import { errorFromStatus, serviceDefinition, statusOf } from "./index.ts";

describe("an error that crosses a process", () => {
  it.each(ERROR_CODES)("arrives with its code, message and field (%s)", (code) => {
    const arrived = errorFromStatus(
      asServiceError(statusOf(new ServingError(code, "width 7", { field: "width" }))),
      "w1",
    );
    expect(arrived).toMatchObject({ code, detail: "width 7", field: "width" });
  });

  it("is WORKER_LOST, naming the worker, when the connection died without a trailer", () => {
    const lost = errorFromStatus(asServiceError({ code: status.UNAVAILABLE, details: "read ECONNRESET" }), "w1");
    expect(lost.code).toBe("WORKER_LOST");
    expect(lost.message).toContain("w1: read ECONNRESET");
  });
});

describe("serviceDefinition", () => {
  it("marks the streams of the worker service", () => {
    const definition = serviceDefinition(WorkerService);
    expect(definition["generate"]).toMatchObject({
      path: "/atelier.v1.WorkerService/Generate",
      requestStream: false,
      responseStream: true,
    });
    expect(definition["drain"]).toMatchObject({ responseStream: false });
  });
});

function asServiceError(partial: { code: status; details: string; metadata?: Metadata }): ServiceError {
  return Object.assign(new Error(partial.details), { metadata: new Metadata() }, partial);
}
