/** The least that serves bytes from Redis over HTTP: node:http, ioredis, and the body read as ours has to be. */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { Redis } from "ioredis";

const [url, key, mediaType] = process.argv.slice(2) as [string, string, string];
const redis = new Redis(url);
const server = createServer((request, response) => {
  request.resume().once("end", async () => {
    const value = (await redis.getBuffer(key))!;
    response.writeHead(200, { "content-type": mediaType, "content-length": value.length }).end(value);
  });
});
server.listen(0, "127.0.0.1", () => console.log(`listening ${(server.address() as AddressInfo).port}`));
