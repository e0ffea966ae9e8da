import { type Command, InvalidArgumentError, Option } from "commander";
import { httpUrl, wholeNumber } from "./argument-values.ts";
import { CliError } from "./cli-error.ts";
import { createKey, createKeyOffline, listKeys, type NewKey, revokeKey, rotateKey } from "./commands/keys.ts";
import { listTenants, setTenant, type TenantSettings } from "./commands/tenants.ts";
import { examples } from "./examples.ts";

const LIMIT_MAX = 1_000_000_000;
const GRACE_MAX_S = 30 * 24 * 3600;

/** `atelier keys` and `atelier tenants`. */
export function addTenancy(program: Command, { defaultUrl }: { readonly defaultUrl: string }): void {
  addKeys(program, defaultUrl);
  addTenants(program, defaultUrl);
}

export function urlOption(): Option {
  return new Option("--url <url>", "a running system").env("ATELIER_URL").argParser(httpUrl);
}

/** The variable before the option: what stands on a command line, others on the machine can read. */
export function keyOption(): Option {
  return new Option("--key <key>", "an API key, where the system asks for one").env("ATELIER_API_KEY");
}

function addKeys(program: Command, defaultUrl: string): void {
  const keys = program.command("keys").description("API keys: who may use a running system · 密钥");
  const command = (usage: string, description: string) =>
    keys.command(usage).description(description).addOption(urlOption().default(defaultUrl)).addOption(keyOption());
  const json = ["--json", "print it as JSON", false] as const;

  command("create", "make one; it is printed once")
    .requiredOption("--name <text>", "whose it is")
    .option("--tenant <id>", "whose limits and use it counts towards (default: default)")
    .addOption(new Option("--role <name>", "what it may do").choices(["user", "operator", "admin"]))
    .option("--scopes <names>", "some of generate,jobs,models,usage,admin (default: all that the role may)", names)
    .addOption(
      new Option("--priority <class>", "the most urgent that it may ask for").choices([
        "interactive",
        "standard",
        "bulk",
      ]),
    )
    .option("--models <ids>", "models that it may use (default: all of its tenant's)", names)
    .option("--adapters <names>", "adapters that it may use (default: all of its tenant's)", names)
    .option("--expires <when>", "a date such as 2027-01-31, or days such as 90d (default: never)", moment)
    .option("--offline", "make it without a running system, for the keys file", false)
    .option("--file <path>", "with --offline: the keys file to add it to")
    .option(...json)
    .addHelpText(
      "after",
      examples([
        "atelier keys create --offline --name ops --role admin --file ./keys.json",
        "atelier keys create --name shop --tenant shop --expires 90d",
      ]),
    )
    .action(async (given) => {
      const key: NewKey = present({
        name: given.name,
        tenant: given.tenant,
        role: given.role,
        scopes: given.scopes,
        priority: given.priority,
        models: given.models,
        adapters: given.adapters,
        expires_at: given.expires,
      });
      if (given.offline) return createKeyOffline({ key, file: given.file });
      if (given.file !== undefined) throw new CliError("--file goes with --offline", { exitCode: 2 });
      return createKey({ server: given, key, json: given.json });
    });
  command("ls", "list them, without their secrets")
    .option(...json)
    .action((given) => listKeys({ server: given, json: given.json }));
  command("rotate", "give one a new secret, which is printed once")
    .argument("<id>")
    .option(
      "--grace <seconds>",
      "how long the secret before stays good (default: a day)",
      wholeNumber({ min: 0, max: GRACE_MAX_S }),
    )
    .option(...json)
    .action((id: string, given) => rotateKey({ server: given, id, graceSeconds: given.grace, json: given.json }));
  command("revoke", "end one, and the requests that run by it")
    .argument("<id>")
    .action((id: string, given) => revokeKey({ server: given, id }));
}

function addTenants(program: Command, defaultUrl: string): void {
  const tenants = program.command("tenants").description("tenants: how much each may use · 租户");
  const command = (usage: string, description: string) =>
    tenants
      .command(usage)
      .description(description)
      .addOption(urlOption().default(defaultUrl))
      .addOption(keyOption())
      .option("--json", "print it as JSON", false);

  command("ls", "list them with their limits").action((given) => listTenants({ server: given, json: given.json }));
  command("set", "set limits; what is not given stays, and none takes a limit away")
    .argument("<id>")
    .option("--requests-per-minute <n>", "requests in a minute", limit)
    .option("--images-per-minute <n>", "pictures in a minute", limit)
    .option("--concurrent <n>", "requests at once", limit)
    .option("--images-per-month <n>", "pictures in a calendar month", limit)
    .option("--device-seconds-per-month <n>", "device seconds in a calendar month", limit)
    .option("--price <amount>", "of a device hour, in the place of the gateway's", amount)
    .option("--weight <x>", "its share of a busy device against that of others, 0.1 to 100", amount)
    .option("--models <ids>", "models that it may use, or none for no list: all", namesOrAll)
    .option("--adapters <names>", "adapters that it may use, or none for no list: all", namesOrAll)
    .addHelpText("after", examples(["atelier tenants set shop --requests-per-minute 600 --images-per-month 100000"]))
    .action((id: string, given) => {
      const changes: Partial<TenantSettings> = present({
        requests_per_minute: given.requestsPerMinute,
        images_per_minute: given.imagesPerMinute,
        concurrent_requests: given.concurrent,
        images_per_month: given.imagesPerMonth,
        device_seconds_per_month: given.deviceSecondsPerMonth,
        price_per_device_hour: given.price,
        weight: given.weight,
        models: given.models,
        adapters: given.adapters,
      });
      return setTenant({ server: given, id, changes, json: given.json });
    });
}

function names(text: string): string[] {
  const found = text.split(",").map((name) => name.trim());
  if (found.every((name) => name !== "")) return found;
  throw new InvalidArgumentError("It must be names separated by commas.");
}

/** Takes a setting away; null would be read as an option without a value. */
const NONE = Symbol("none");

const namesOrAll = (text: string) => (text === "none" ? NONE : names(text));
const limit = (text: string) => (text === "none" ? NONE : wholeNumber({ min: 1, max: LIMIT_MAX })(text));

function amount(text: string): number | typeof NONE {
  if (text === "none") return NONE;
  const value = Number(text);
  if (text.trim() !== "" && value >= 0 && Number.isFinite(value)) return value;
  throw new InvalidArgumentError("It must be an amount from 0, or none.");
}

function moment(text: string): string {
  const days = /^(\d{1,5})d$/.exec(text)?.[1];
  const atMs = days === undefined ? Date.parse(text) : Date.now() + Number(days) * 86_400_000;
  if (Number.isFinite(atMs)) return new Date(atMs).toISOString();
  throw new InvalidArgumentError("It must be a date such as 2027-01-31, or days such as 90d.");
}

/** Without what was not given: the gateway has its own defaults. */
function present<T extends object>(fields: T): T {
  const given = Object.entries(fields).filter(([, value]) => value !== undefined);
  return Object.fromEntries(given.map(([name, value]) => [name, value === NONE ? null : value])) as T;
}
