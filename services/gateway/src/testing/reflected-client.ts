import {
  type Client,
  type ClientDuplexStream,
  credentials,
  type GrpcObject,
  loadPackageDefinition,
  type ServiceClientConstructor,
} from "@grpc/grpc-js";
import { fromJSON, loadFileDescriptorSetFromBuffer } from "@grpc/proto-loader";

/** What of the reflection protocol is asked here. Source: grpc/reflection/v1/reflection.proto of the gRPC project. */
const REFLECTION = {
  nested: {
    grpc: {
      nested: {
        reflection: {
          nested: {
            v1: {
              nested: {
                ServerReflection: {
                  methods: {
                    ServerReflectionInfo: {
                      requestType: "Request",
                      requestStream: true,
                      responseType: "Response",
                      responseStream: true,
                    },
                  },
                },
                Request: { fields: { file_containing_symbol: { type: "string", id: 4 } } },
                Response: { fields: { file_descriptor_response: { type: "Files", id: 4 } } },
                Files: { fields: { file_descriptor_proto: { rule: "repeated", type: "bytes", id: 1 } } },
              },
            },
          },
        },
      },
    },
  },
};

const LOADING = { keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true } as const;

/** The client that anybody would make who knows the service's name and nothing else: from the server's own description. */
export async function reflectedClient(
  address: string,
  service: string,
): Promise<Client & Record<string, CallableFunction>> {
  const Reflection = constructorAt(
    loadPackageDefinition(fromJSON(REFLECTION as Parameters<typeof fromJSON>[0], LOADING)),
    "grpc.reflection.v1.ServerReflection",
  );
  const reflection = new Reflection(address, credentials.createInsecure());
  const call = reflection["ServerReflectionInfo"]!() as ClientDuplexStream<unknown, Described>;
  const described = new Promise<Described>((resolve, reject) => call.once("data", resolve).once("error", reject));
  call.write({ file_containing_symbol: service });
  const { file_descriptor_proto: files } = (await described).file_descriptor_response;
  call.end();
  reflection.close();
  const loaded = loadPackageDefinition(loadFileDescriptorSetFromBuffer(Buffer.concat(files.map(asSetEntry)), LOADING));
  const Reflected = constructorAt(loaded, service);
  return new Reflected(address, credentials.createInsecure()) as unknown as Client & Record<string, CallableFunction>;
}

interface Described {
  readonly file_descriptor_response: { readonly file_descriptor_proto: readonly Buffer[] };
}

/** One `file` of a google.protobuf.FileDescriptorSet: field 1, its length, its bytes. */
function asSetEntry(file: Buffer): Buffer {
  const head = [0x0a];
  let length = file.length;
  for (; length > 0x7f; length >>>= 7) head.push((length & 0x7f) | 0x80);
  return Buffer.concat([Buffer.from([...head, length]), file]);
}

function constructorAt(root: GrpcObject, path: string): ServiceClientConstructor {
  return path.split(".").reduce<unknown>((at, name) => (at as GrpcObject)[name], root) as ServiceClientConstructor;
}
