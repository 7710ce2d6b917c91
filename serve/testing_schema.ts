// Holds JSON against a schema of the OpenAPI document.
import { isObject } from "../base/json.ts";

/** The part of JSON Schema that the document uses for answers. */
export type Schema = {
  type?: string | string[];
  properties?: Record<string, Schema>;
  required?: string[];
  additionalProperties?: boolean | Schema;
  items?: Schema;
  enum?: unknown[];
  const?: unknown;
};

/** What in a value contradicts a schema, with its place. */
export function violations(value: unknown, schema: Schema, place = "$"): string[] {
  if ("const" in schema) return value === schema.const ? [] : [`${place} is not ${schema.const}`];
  if (schema.enum && !schema.enum.includes(value)) return [`${place} is none of ${schema.enum}`];
  const types = schema.type === undefined ? [] : [schema.type].flat();
  if (types.length > 0 && !types.some((type) => IS_OF_TYPE[type]!(value))) {
    return [`${place} is not ${types}`];
  }
  if (Array.isArray(value)) {
    return value.flatMap((item, i) => schema.items ? violations(item, schema.items, `${place}[${i}]`) : []);
  }
  if (typeof value !== "object" || value === null) return [];
  const missing = (schema.required ?? []).filter((name) => !(name in value));
  return [
    ...missing.map((name) => `${place}.${name} is missing`),
    ...Object.entries(value).flatMap(([name, inner]) => {
      const known = schema.properties?.[name] ?? schema.additionalProperties ?? true;
      if (known === false) return [`${place}.${name} is not in the document`];
      return known === true ? [] : violations(inner, known, `${place}.${name}`);
    }),
  ];
}

const IS_OF_TYPE: Record<string, (value: unknown) => boolean> = {
  null: (value) => value === null,
  array: Array.isArray,
  integer: Number.isInteger,
  number: (value) => typeof value === "number",
  string: (value) => typeof value === "string",
  boolean: (value) => typeof value === "boolean",
  object: isObject,
};
