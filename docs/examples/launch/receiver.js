// Prints what a job tells its receiver, once the signature was found to be the gateway's. Ends when the job has.
import { createServer } from "node:http";
import { Webhook } from "standardwebhooks";

const { ATELIER_URL = "http://127.0.0.1:8080", PORT = "8099" } = process.env;
const { secret } = await (await fetch(`${ATELIER_URL}/v1/webhook-secret`)).json();
const webhook = new Webhook(secret);

const server = createServer(async (request, response) => {
  let body = "";
  for await (const part of request.setEncoding("utf8")) body += part;
  try {
    const { type, data } = webhook.verify(body, request.headers);
    const { name, item_count, counts } = data.job;
    console.log(`${type}: ${name}, ${counts.done} of ${item_count} pictures`);
    response.writeHead(204, { connection: "close" }).end();
    if (type === "job.done") server.close();
  } catch (error) {
    console.log(`not from the gateway: ${error.message}`);
    response.writeHead(401, { connection: "close" }).end();
  }
});
server.listen(Number(PORT), "127.0.0.1", () => console.log(`listening at http://127.0.0.1:${PORT}/hooks`));
