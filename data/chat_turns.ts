// Finds the assistant's turns in one rendering of a conversation. What a template has written when its loop over the messages
// comes to a turn, and then what stands behind the loop, is what it writes of the messages before that turn, as long as nothing
// on the way depends on those that follow. Marks in the loop show the one; a call tells where the other may not be so.
import { parse, tokenize } from "@huggingface/jinja";
import { isObject } from "../base/json.ts";

/** A turn of the assistant. */
export type Turn = {
  /** A place in the text of the conversation, at or before the assistant's words. */
  at: number;
  /** What the text of the messages before the turn, with the generation prompt, has from there on. */
  prompt: string;
  /** How far the text of the messages up to the turn has the same from there on, */
  end: number;
  /** and what it has then. */
  rest: string;
};

/** The function that a marked template calls where it does what may depend on the messages that follow. */
export const LOOKS_AHEAD = "loam_looks_ahead";

/** A node of a parsed template. */
type Node = { type: string; [field: string]: unknown };
type Loop = { loopvar: Node; iterable: Node; body: Node[]; defaultBlock: Node[] };

/** Begins and ends a part of a text that is marked: noncharacters, which a text should not have. */
export const BEGIN = "\uFDD0\uFDD1", END = "\uFDD1\uFDD0";

/** What of `loop` does not depend on what follows. */
const PAST: unknown[] = ["index", "index0", "first", "previtem"];

/** The fields of a statement in which it has statements; others have expressions. */
const BLOCKS = ["body", "alternate", "defaultBlock"];

/**
 * Marks the turns in a parsed template. Returns how many messages there must be before a turn that readTurns() may be asked for:
 * Infinity where the template is no loop over the messages with something simple behind it.
 */
export function markTurns(program: object): number {
  const { body } = program as { body: Node[] }, lists = listsIn(body);
  const at = body.findLastIndex(({ type, iterable }) => type === "For" && isList(iterable, lists));
  if (at < 0) return Infinity;
  const head = body.slice(0, at), loop = body[at] as unknown as Loop, tail = body.slice(at + 1);
  const turn = loop.loopvar.value as string, bound = namesSetIn(loop.body), isTwice = bound.has(turn);
  const lasts = new Set(["loop", turn, ...bound, ...macrosIn(body)]); // not the same at a turn and behind the loop
  if (
    loop.loopvar.type !== "Identifier" || loop.defaultBlock.length > 0 || isTwice ||
    has(loop.body, "Break", "Continue") || has(tail, "Set", "Macro") || !lasts.isDisjointFrom(namesIn(tail))
  ) return Infinity;

  const ahead = new Set(["loop", ...lists]);
  tell(tail, ahead, lists);
  ahead.add("add_generation_prompt");
  tell(head, ahead, lists, true);
  tell(loop.body, ahead, lists);
  loop.body.unshift(markAt(turn, true, tail));
  loop.body.push(markAt(turn, false, tail));
  body.splice(0, Infinity, ...head, body[at]!, ...tail);
  return 1 + [...nodesIn([head, loop.iterable])].filter(({ type }) => type === "SliceExpression").length;
}

/**
 * The turns in what a marked template wrote of so many of the assistant's messages. Undefined where it did not write all marks, or
 * the messages have some of their own.
 */
export function readTurns(marked: string, count: number): { text: string; turns: Turn[] } | undefined {
  let [text, ...parts] = marked.split(BEGIN) as [string, ...string[]];
  const looks = parts.map((part) => {
    const at = text.length, [look, rest, ...more] = part.split(END);
    text += rest;
    return { at, look: look!, isWhole: rest !== undefined && more.length === 0 };
  });
  const isWhole = looks.length === 2 * count && looks.every(({ isWhole }) => isWhole);
  if (!isWhole) return undefined; // a mark of the conversation is one too many, and cannot hide one of ours
  const turns = Array.from({ length: count }, (_, i) => {
    const { at, look: prompt } = looks[2 * i]!, { at: end, look: rest } = looks[2 * i + 1]!;
    return { at, prompt, end, rest };
  });
  return { text, turns };
}

/** A mark at a turn of the assistant, in which is what the template has behind the loop. */
function markAt(turn: string, prompt: boolean, tail: Node[]): Node {
  const source = `{% if ${turn}.role == 'assistant' %}{% set add_generation_prompt = ${prompt} %}` +
    `{{ '${BEGIN}' }}{{ '${END}' }}{% endif %}`;
  const [mark] = parse(tokenize(source)).body as unknown as { type: string; body: Node[] }[];
  mark!.body.splice(2, 0, ...tail);
  return mark!;
}

/** Puts a call before each statement that uses one of the names, unless it is in a way that does not depend on what follows. */
function tell(block: Node[], ahead: Set<string>, lists: Set<string>, isHead = false): void {
  for (const node of block.splice(0)) {
    const isAlias = isHead && node.type === "Set" && isList(node.value, lists);
    const expressions = Object.entries(node).flatMap(([field, value]) =>
      BLOCKS.includes(field) ? [] : [value]
    );
    if (!isAlias && !ahead.isDisjointFrom(namesIn(expressions, lists))) {
      block.push(parse(tokenize(`{{ ${LOOKS_AHEAD}() }}`)).body[0] as unknown as Node);
    }
    block.push(node);
    for (const field of BLOCKS) {
      if (Array.isArray(node[field])) tell(node[field], ahead, lists, isHead && node.type === "If");
    }
  }
}

// ---- what is in a template

/** The names that may stand for the messages, or for those behind the first. */
function listsIn(body: Node[]): Set<string> {
  const lists = new Set(["messages"]);
  for (let size = 0; size < lists.size;) {
    size = lists.size;
    for (const { type, value, assignee } of nodesIn(body)) {
      if (type === "Set" && isList(value, lists)) namesIn(assignee).forEach((name) => lists.add(name));
    }
  }
  return lists;
}

/** Whether an expression is the messages, all or without the first, whichever those are. */
function isList(node: unknown, lists: Set<string>): boolean {
  if (!isNode(node)) return false;
  const { type, value, object, property, computed, condition, trueExpr, falseExpr } = node;
  if (type === "Identifier") return lists.has(value as string);
  if (type === "Ternary") {
    const ahead = new Set(["loop", "add_generation_prompt", ...lists]);
    return isList(trueExpr, lists) && isList(falseExpr, lists) &&
      ahead.isDisjointFrom(namesIn(condition, lists));
  }
  if (type !== "MemberExpression" || !computed || !isNode(property) || property.type !== "SliceExpression") {
    return false;
  }
  const { start, stop, step } = property;
  return isName(object, lists) && isNode(start) && start.value === 1 && stop === undefined &&
    step === undefined;
}

/** Whether an expression is the first message, or what else does not depend on those that follow. */
function isPast({ type, object, property, computed, operand, test }: Node, lists: Set<string>): boolean {
  if (type === "TestExpression") {
    return isNode(operand) && operand.type === "Identifier" && (test as Node).value === "defined";
  }
  if (type !== "MemberExpression" || !isNode(property)) return false;
  return computed
    ? isName(object, lists) && property.type === "IntegerLiteral" && property.value === 0
    : isName(object, new Set(["loop"])) && PAST.includes(property.value);
}

function isName(node: unknown, names: Set<string>): boolean {
  return isNode(node) && node.type === "Identifier" && names.has(node.value as string);
}

function isNode(value: unknown): value is Node {
  return isObject(value) && typeof value.type === "string";
}

/** All names in nodes; with lists only those that are not in what isPast(). */
function namesIn(nodes: unknown, lists?: Set<string>): Set<string> {
  return new Set(
    nodesIn(nodes, lists).flatMap(({ type, value }) => type === "Identifier" ? [value as string] : []),
  );
}

/** The names that are set in statements; what a namespace has is not one. */
function namesSetIn(block: Node[]): Set<string> {
  const isVariable = ({ type, assignee }: Node) =>
    type === "Set" && (assignee as Node).type !== "MemberExpression";
  return namesIn([...nodesIn(block)].filter(isVariable).map(({ assignee }) => assignee));
}

function macrosIn(block: Node[]): Set<string> {
  return namesIn([...nodesIn(block)].filter(({ type }) => type === "Macro").map(({ name }) => name));
}

function has(block: Node[], ...types: string[]): boolean {
  return nodesIn(block).some(({ type }) => types.includes(type));
}

function* nodesIn(value: unknown, lists?: Set<string>): Generator<Node> {
  if (value instanceof Map) return yield* nodesIn([...value], lists); // an object literal
  if (Array.isArray(value)) { for (const each of value) yield* nodesIn(each, lists); }
  if (!isNode(value) || lists && isPast(value, lists)) return;
  yield value;
  yield* nodesIn(Object.values(value), lists);
}
