import { type DescFile, type DescService, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import { ReflectionService } from "@grpc/reflection";

type PackageDefinition = ConstructorParameters<typeof ReflectionService>[0];

/** Server reflection for the services, from the descriptors that their generated code holds. */
export function reflectionOf(services: readonly DescService[]): ReflectionService {
  const files = new Set(services.flatMap(({ file }) => [file, ...dependenciesOf(file)]));
  const fileDescriptorProtos = [...files].map((file) => Buffer.from(toBinary(FileDescriptorProtoSchema, file.proto)));
  // The library reads only the descriptors of a definition, which proto-loader would have made from .proto files.
  const definition = Object.fromEntries(services.map(({ typeName }) => [typeName, { fileDescriptorProtos }]));
  return new ReflectionService(definition as unknown as PackageDefinition);
}

function dependenciesOf(file: DescFile): DescFile[] {
  return file.dependencies.flatMap((dependency) => [dependency, ...dependenciesOf(dependency)]);
}
