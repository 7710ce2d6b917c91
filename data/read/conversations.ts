// Conversations in JSON lines, as people keep them: OpenAI's {"messages": [{"role", "content"}]}, ShareGPT's {"conversations":
// [{"from", "value"}]}, and {"prompt", "completion"}. On its way to an encoder a conversation is its line as it stands, and
// behind a newline the place that it came from, for messages.
import { UserError } from "../../base/errors.ts";
import { isObject, show } from "../../base/json.ts";
import type { Message } from "../chat_template.ts";
import { parseObject } from "./json_lines.ts";

/** What a line holds. */
export type Conversation = {
  /** Its turns; at least one. */
  messages: Message[];
  /** JSON schemas of the functions that the assistant could call, where the line has any. */
  tools?: unknown[];
};

const NEWLINE = 0x0a;

/** Where the line of a document of conversations ends, and behind one byte its place begins. */
export function endOfLine(document: Uint8Array, from: number): number {
  return document.indexOf(NEWLINE, from);
}

/** The roles of ShareGPT by their usual names; others go to the template as they are. */
const ROLES: Record<string, string> = { human: "user", gpt: "assistant" };

/**
 * The conversation in a line. Throws UserError that names the place and says what it has.
 *
 * @param column The field with the messages, where it is neither "messages" nor "conversations"; "text" for these.
 */
export function parseConversation(line: string, column: string, place: string): Conversation {
  const row = parseObject(line, place), messages = messagesOf(row, column, place);
  const { system } = row;
  if (typeof system === "string") {
    if (messages[0]!.role !== "system") messages.unshift({ role: "system", content: system });
  } else if (system !== undefined && system !== null) {
    throw new UserError(`Cannot read ${place}: system is ${show(system)}, should be a text`);
  }
  const tools = toolsOf(row.tools, place);
  return { messages, ...tools && { tools } };
}

function messagesOf(row: Record<string, unknown>, column: string, place: string): Message[] {
  const named = column === "text" ? ["messages", "conversations"] : [column];
  const field = named.find((name) => Object.hasOwn(row, name));
  if (field !== undefined) return readList(row[field], field, place);
  if (column === "text" && Object.hasOwn(row, "prompt") && Object.hasOwn(row, "completion")) {
    return [
      ...turnsOf(row.prompt, "prompt", "user", place),
      ...turnsOf(row.completion, "completion", "assistant", place),
    ];
  }
  const fields = Object.keys(row).join(", ") || "none";
  const wanted = column === "text"
    ? "messages, no conversations and no prompt with a completion"
    : `field "${column}"`;
  throw new UserError(`Cannot read ${place}: it has no ${wanted} but ${fields}; choose one with --column`);
}

/** The turns of a prompt or a completion, which are a text or a list of messages. */
function turnsOf(value: unknown, field: string, role: string, place: string): Message[] {
  return typeof value === "string" ? [{ role, content: value }] : readList(value, field, place, "a text or ");
}

function readList(value: unknown, field: string, place: string, or = ""): Message[] {
  const wrong = (what: string, should: string) =>
    new UserError(`Cannot read ${place}: ${what}, should be ${should}`);
  const list: unknown = typeof value === "string" && value.startsWith("[") ? tryParse(value) : value;
  if (!Array.isArray(list)) throw wrong(`${field} is ${show(value)}`, `${or}a list of messages`);
  if (list.length === 0) throw wrong(`${field} is empty`, "at least one message");
  return list.map((message: unknown, i) => {
    const name = `${field}[${i}]`;
    if (!isObject(message)) throw wrong(`${name} is ${show(message)}`, "an object with role and content");
    const { from, value, ...rest } = message;
    const { role, content, ...more } = from === undefined
      ? message
      : { role: typeof from === "string" ? ROLES[from] ?? from : from, content: value, ...rest };
    if (typeof role !== "string") throw wrong(`the role of ${name} is ${show(role)}`, "a text");
    const isCall = Array.isArray(more.tool_calls) && (content === null || content === undefined);
    const text = isCall ? "" : textOf(content);
    if (text === undefined) {
      const should = Array.isArray(content) ? 'a text, or parts of type "text"' : "a text";
      throw wrong(`the content of ${name} is ${show(content)}`, should);
    }
    return { role, content: text, ...more };
  });
}

/** The text of a message, which may be in parts: templates made for texts write a list as JSON, or leave it out. */
function textOf(content: unknown): string | undefined {
  if (typeof content === "string") return content;
  const isText = (part: unknown): part is { text: string } =>
    isObject(part) && part.type === "text" && typeof part.text === "string";
  return Array.isArray(content) && content.every(isText)
    ? content.map(({ text }) => text).join("")
    : undefined;
}

/** Tools are a list, or the JSON of one, as datasets keep it whose columns have one type. */
function toolsOf(value: unknown, place: string): unknown[] | undefined {
  if (value === undefined || value === null || value === "") return undefined;
  const tools = typeof value === "string" ? tryParse(value) : value;
  if (Array.isArray(tools)) return tools.length === 0 ? undefined : tools;
  throw new UserError(`Cannot read ${place}: tools is ${show(value)}, should be a list of functions`);
}

function tryParse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
