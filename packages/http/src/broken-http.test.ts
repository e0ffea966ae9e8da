import { createServer } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { expect, it } from "vitest";
import { answerBrokenHttp } from "./broken-http.ts";

it("tells a caller who is too slow to send its body so, in the form of every other failure", async () => {
  const server = createServer({ requestTimeout: 50, headersTimeout: 50, connectionsCheckingInterval: 10 });
  server.on("clientError", answerBrokenHttp);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));

  const slow = connect((server.address() as AddressInfo).port, "127.0.0.1");
  slow.write("POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{");
  let answer = "";
  slow.setEncoding("utf8").on("data", (text) => {
    answer += text;
  });
  await new Promise((resolve) => slow.on("close", resolve));
  server.close();

  expect(answer).toMatch(/^HTTP\/1.1 408 Request Timeout\r\nx-atelier-request-id: (req_[\w-]{16})\r\n/);
  const { error } = JSON.parse(answer.split("\r\n\r\n")[1] ?? "");
  expect(error).toMatchObject({ code: "INVALID_REQUEST", message: "the request was not sent completely in time" });
});
