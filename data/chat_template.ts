// Renders conversations with a tokenizer's own chat template, as transformers' apply_chat_template() does, and says which of
// the text the assistant wrote. Jinja itself is the library @huggingface/jinja.
import { Environment, Interpreter, parse, tokenize } from "@huggingface/jinja";
import { UserError } from "../base/errors.ts";
import { isFile } from "../base/files.ts";
import { isObject, show } from "../base/json.ts";
import { BEGIN, END, LOOKS_AHEAD, markTurns, readTurns, type Turn } from "./chat_turns.ts";
import { parseJson } from "./tokenizers/tokenizer_file.ts";

/** One turn of a conversation. What else it has, such as tool_calls, goes to the template as it is. */
export type Message = { role: string; content: string; [more: string]: unknown };

/** What a template may know besides the messages. */
export type RenderOptions = {
  /** Whether the text ends with the beginning of an answer, for a model to go on from. */
  add_generation_prompt?: boolean;
  /** JSON schemas of the functions that the assistant may call. */
  tools?: unknown[];
  /** The time that the template's strftime_now() tells: now, if nothing else is said. */
  now?: Date;
};

/** A part of a text: from its first character to the one behind its last. */
export type TextSpan = [from: number, to: number];

/** A rendered conversation, and what in it the assistant wrote. */
export type Rendered = { text: string; spans: TextSpan[] };

/**
 * ChatML, for a tokenizer without a template of its own. Its end-of-text token stands in the place of <|im_end|>, so that every
 * program stops at the end of an answer; <|im_start|> is text like any other where it is no token of the vocabulary.
 */
export const DEFAULT_TEMPLATE: string =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}" +
  "{% if message['role'] == 'assistant' %}" +
  "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}" +
  "{% else %}{{ message['content'] + eos_token }}{% endif %}{{ '\\n' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/** The names under which templates find special tokens in tokenizer_config.json. */
const SPECIAL = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/** Roles of which a template may leave out a part, such as thoughts. */
const USUAL = ["user", "assistant", "tool"];

type Program = ReturnType<typeof parse>;

const GENERATION_TAG = /\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}/g;

/** A chat template, parsed. */
export class ChatTemplate {
  /** The Jinja text. */
  readonly source: string;
  readonly #name: string;
  readonly #program: Program;
  readonly #marks: boolean;
  readonly #turns: Program; // the same with marks at the turns
  readonly #first: number; // messages before a turn that these tell
  #looksAhead = false;
  readonly #globals = new Environment(); // the variables that are the same for every conversation

  /**
   * specialTokens: bos_token, eos_token and the like, as they are written. name: what errors call it. Throws UserError if the
   * source is no Jinja.
   */
  constructor(source: string, specialTokens: Record<string, string>, name = "the chat template") {
    this.source = source;
    this.#name = name;
    for (const [name, value] of Object.entries({ ...GLOBALS, ...specialTokens })) {
      this.#globals.set(name, value);
    }
    const tags = Array.from(
      source.matchAll(GENERATION_TAG),
      ([, , end]) => end === undefined ? "begin" : "end",
    );
    this.#marks = tags.length > 0;
    if (tags.some((tag, i) => tag !== (i % 2 === 0 ? "begin" : "end")) || tags.length % 2 === 1) {
      throw new UserError(
        `Cannot use ${name}: its {% generation %} and {% endgeneration %} do not alternate`,
      );
    }
    this.#globals.set(LOOKS_AHEAD, () => {
      this.#looksAhead = true;
      throw new Error(LOOKS_AHEAD);
    });
    try {
      this.#program = parseTemplate(source);
      this.#turns = parseTemplate(source);
      this.#first = markTurns(this.#turns);
    } catch (error) {
      throw new UserError(`Cannot use ${name}: it is not the Jinja of chat templates: ${reasonOf(error)}`);
    }
  }

  /**
   * The template of a tokenizer's directory: chat_template.jinja, or else what tokenizer_config.json has, or else ChatML; or the
   * source in its place, with the same special tokens. name: what errors call that. Throws UserError if it is no Jinja.
   */
  static read(dir: string, source?: string, name?: string): ChatTemplate {
    const file = `${dir}/chat_template.jinja`, path = `${dir}/tokenizer_config.json`;
    const config = isFile(path) ? parseJson(path, Deno.readTextFileSync(path)) : {};
    const tokens = specialTokensOf(config);
    if (source !== undefined) return new ChatTemplate(source, tokens, name);
    if (isFile(file)) return new ChatTemplate(Deno.readTextFileSync(file), tokens, `"${file}"`);
    const own = templateOf(config, path);
    if (own !== undefined) return new ChatTemplate(own, tokens, `the chat_template of "${path}"`);
    if (tokens.eos_token !== undefined) {
      return new ChatTemplate(DEFAULT_TEMPLATE, tokens, "loam's own chat template");
    }
    throw new UserError(
      `Cannot open a chat template in "${dir}": there is none, and no eos_token in tokenizer_config.json for one of loam's own`,
    );
  }

  /** Whether the template tells the date or the time, so that its text is another one every day. */
  get hasTime(): boolean {
    return this.source.includes("strftime_now");
  }

  /**
   * The text of a conversation. Throws UserError with the template's own reason if it refuses the messages, and for a role or
   * a call that it leaves out without a word.
   */
  render(messages: Message[], options: RenderOptions = {}): string {
    const text = this.#run(this.#program, messages, options);
    this.#requireAll(messages, text);
    return text;
  }

  /**
   * The text of a conversation, and what of it the assistant wrote: what is between {% generation %} and {% endgeneration %}, or
   * where the template has none, what each of the assistant's messages adds behind the generation prompt. Throws UserError with
   * the template's own reason if it refuses the messages, and where a message adds nothing that could be found.
   */
  renderWithSpans(messages: Message[], options: RenderOptions = {}): Rendered {
    if (this.#marks) {
      if (hasMarks([messages, options.tools])) {
        throw new UserError(
          "Cannot render a conversation: it has U+FDD0 or U+FDD1, which are no characters and mark here what the assistant says",
        );
      }
      const rendered = readMarks(this.#run(this.#program, messages, options, BEGIN, END));
      this.#requireAll(messages, rendered.text);
      return rendered;
    }
    const assistant = [...messages.keys()].filter((i) => messages[i]!.role === "assistant");
    const isKnown = (i: number) => i >= this.#first;
    const known = assistant.some(isKnown)
      ? this.#renderTurns(messages, assistant.length, options)
      : undefined;
    const text = known?.text ?? this.#run(this.#program, messages, options);
    this.#requireAll(messages, text);
    const spans = assistant.map((i, nth) => {
      const turn = known && isKnown(i) ? known.turns[nth]! : this.#turnOf(messages, i, text, options);
      return this.#spanOf(turn, i, text);
    });
    return { text, spans };
  }

  /** The text of a conversation and its turns, in one rendering; undefined where that cannot be. */
  #renderTurns(
    messages: Message[],
    count: number,
    options: RenderOptions,
  ): { text: string; turns: Turn[] } | undefined {
    this.#looksAhead = false;
    try {
      return readTurns(this.#run(this.#turns, messages, options), count);
    } catch (error) {
      if (this.#looksAhead) return undefined;
      throw error;
    }
  }

  /** Where message i begins and ends, by what the template makes of the messages before it, and of those up to it. */
  #turnOf(messages: Message[], i: number, text: string, options: RenderOptions): Turn {
    const of = (n: number, add_generation_prompt: boolean) =>
      this.#run(this.#program, messages.slice(0, n), { ...options, add_generation_prompt });
    const isLast = i === messages.length - 1 && !options.add_generation_prompt;
    return { at: 0, prompt: of(i, true), end: 0, rest: isLast ? text : of(i + 1, false) };
  }

  /** Where message i is in the text of all: it begins behind the prompt for it. */
  #spanOf({ at, prompt, end, rest }: Turn, i: number, text: string): TextSpan {
    const refused = `Cannot find message ${i + 1} in what ${this.#name} makes of the conversation`;
    const advice =
      "put {% generation %} and {% endgeneration %} around the assistant's words in the template";
    if (!text.startsWith(prompt, at)) {
      throw new UserError(`${refused}: the text before it changes with what follows; ${advice}`);
    }
    const begin = at + prompt.length;
    if (rest === "" && text.slice(begin, end).trim() !== "") return [begin, end];
    // A template may leave out of an earlier turn what the last one has, such as its thoughts: the rest of the turn, with which
    // the text of the messages up to it ends, is then what the whole text goes on with.
    const own = text.slice(at, end) + rest;
    for (let from = prompt.length; from < own.length; from++) {
      const turn = own.slice(from);
      if (text.startsWith(turn, begin) && turn.trim() !== "") return [begin, begin + turn.length];
    }
    throw new UserError(`${refused}: its own text changes with what follows; ${advice}`);
  }

  #requireAll(messages: Message[], text: string): void {
    const lost = messages.find(({ role, content }) =>
      !USUAL.includes(role) && typeof content === "string" && !text.includes(content.trim())
    );
    const call = messages.flatMap(callsOf).find((name) => !text.includes(name));
    if (lost === undefined && call === undefined) return;
    const what = lost === undefined ? `the call of ${call}` : `the role ${JSON.stringify(lost.role)}`;
    throw new UserError(`Cannot render a conversation: its template leaves out ${what}`);
  }

  #run(program: Program, messages: Message[], options: RenderOptions, begin = "", end = ""): string {
    const environment = new Environment(this.#globals);
    environment.set("strftime_now", (format: string) => strftime(options.now ?? new Date(), format));
    environment.set("messages", messages);
    environment.set("tools", options.tools ?? null);
    environment.set("add_generation_prompt", options.add_generation_prompt ?? false);
    environment.set("loam_begin", begin);
    environment.set("loam_end", end);
    try {
      return (new Interpreter(environment).run(program) as unknown as { value: string }).value;
    } catch (error) {
      throw new UserError(`Cannot render a conversation: ${this.#name} says: ${reasonOf(error)}`);
    }
  }
}

function parseTemplate(source: string): Program {
  const program = parse(tokenize(withMarks(source), { trim_blocks: true, lstrip_blocks: true }));
  stripAsPython(program);
  return program;
}

/** What every template may use. The names of Python's constants are in both spellings, as in Jinja. */
const GLOBALS = {
  true: true,
  True: true,
  false: false,
  False: false,
  documents: null,
  none: null,
  None: null,
  range,
  loam_lstrip: lstrip,
  loam_rstrip: rstrip,
  loam_strip: (text: string, characters?: string) => lstrip(rstrip(text, characters), characters),
  raise_exception(message: string) {
    throw new Error(message);
  },
};

/** Python's range(). */
function range(first: number, second?: number, step = 1): number[] {
  const [from, to] = second === undefined || second === null ? [0, first] : [first, second];
  if (step === 0) throw new RangeError("the step of range() is 0");
  const length = Math.max(0, Math.ceil((to - from) / step));
  return Array.from({ length }, (_, i) => from + i * step);
}

/**
 * Has a parsed template call our functions for strip(), lstrip(), rstrip() and the filter trim: the library's take no heed of
 * which characters are to go, as in Qwen's lstrip('\n'), and other blanks for such than Python.
 */
function stripAsPython(node: unknown): void {
  if (Array.isArray(node)) return node.forEach(stripAsPython);
  if (!isObject(node)) return;
  const { type, callee, filter } = node;
  if (
    type === "CallExpression" && isObject(callee) && callee.type === "MemberExpression" && !callee.computed
  ) {
    const name = isObject(callee.property) ? callee.property.value : undefined;
    if (name === "strip" || name === "lstrip" || name === "rstrip") {
      node.callee = { type: "Identifier", value: `loam_${name}` };
      node.args = [callee.object, ...node.args as unknown[]];
    }
  }
  if (
    type === "FilterExpression" && isObject(filter) && filter.type === "Identifier" && filter.value === "trim"
  ) {
    Object.assign(node, {
      type: "CallExpression",
      callee: { type: "Identifier", value: "loam_strip" },
      args: [node.operand],
    });
  }
  for (const child of Object.values(node)) stripAsPython(child);
}

/** What Python's strip() takes for blanks, and its split(). JavaScript knows U+FEFF for one, and neither U+0085 nor U+001C to 1F. */
export const BLANKS: string =
  "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a" +
  "\u2028\u2029\u202f\u205f\u3000";

function lstrip(text: string, characters: string | null = BLANKS): string {
  let from = 0;
  while (from < text.length && (characters ?? BLANKS).includes(text[from]!)) from++;
  return text.slice(from);
}

/** Python's rstrip(). */
export function rstrip(text: string, characters: string | null = BLANKS): string {
  let to = text.length;
  while (to > 0 && (characters ?? BLANKS).includes(text[to - 1]!)) to--;
  return text.slice(0, to);
}

/** The template with variables in the places of the tags, which act on the blanks around them as the tags do. */
function withMarks(source: string): string {
  return source.replace(GENERATION_TAG, (_, left: string, end: string | undefined, right: string) => {
    return `{%${left} if true %}{{ ${end === undefined ? "loam_begin" : "loam_end"} }}{% endif ${right}%}`;
  });
}

/** Whether a text of JSON, in whatever it is, has a character of the marks. */
function hasMarks(value: unknown): boolean {
  if (typeof value === "string") return /[\uFDD0\uFDD1]/.test(value);
  return typeof value === "object" && value !== null &&
    Object.entries(value).some(([name, each]) => hasMarks(name) || hasMarks(each));
}

/** Takes the marks out of a text. */
function readMarks(marked: string): Rendered {
  const spans: TextSpan[] = [];
  let text = "", at = 0;
  for (;;) {
    const begin = marked.indexOf(BEGIN, at), end = marked.indexOf(END, begin + BEGIN.length);
    if (begin < 0 || end < 0) return { text: text + marked.slice(at), spans };
    text += marked.slice(at, begin);
    const from = text.length;
    text += marked.slice(begin + BEGIN.length, end);
    if (spans.at(-1)?.[1] === from) spans.at(-1)![1] = text.length;
    else if (text.length > from) spans.push([from, text.length]);
    at = end + END.length;
  }
}

/** The names of the functions that a message calls. */
function callsOf({ tool_calls }: Message): string[] {
  if (!Array.isArray(tool_calls)) return [];
  return tool_calls.map((call) => (call?.function ?? call)?.name).filter((name) => typeof name === "string");
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** A token is a text, or an object with the text in `content`. */
function specialTokensOf(config: Record<string, unknown>): Record<string, string> {
  return Object.fromEntries(SPECIAL.flatMap((name) => {
    const value = config[name], text = isObject(value) ? value.content : value;
    return typeof text === "string" ? [[name, text]] : [];
  }));
}

/** chat_template is a text, or a list of them with names. */
function templateOf({ chat_template }: Record<string, unknown>, path: string): string | undefined {
  if (chat_template === undefined || chat_template === null) return undefined;
  if (typeof chat_template === "string") return chat_template;
  const named = Array.isArray(chat_template)
    ? chat_template.find((one) => one?.name === "default")
    : undefined;
  if (typeof named?.template === "string") return named.template;
  throw new UserError(
    `Cannot use "${path}": its chat_template is ${
      show(chat_template)
    }, should be a text, or a list with one of name "default"`,
  );
}

const MONTHS = ["January", "February", "March", "April", "May", "June", "July"].concat(
  ["August", "September", "October", "November", "December"],
);
const DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/** Python's strftime() for what templates ask for. */
function strftime(date: Date, format: string): string {
  const two = (n: number) => String(n).padStart(2, "0");
  const month = MONTHS[date.getMonth()]!,
    day = DAYS[date.getDay()]!,
    values: Record<string, string> = {
      Y: String(date.getFullYear()),
      m: two(date.getMonth() + 1),
      d: two(date.getDate()),
      B: month,
      b: month.slice(0, 3),
      A: day,
      a: day.slice(0, 3),
      H: two(date.getHours()),
      M: two(date.getMinutes()),
      S: two(date.getSeconds()),
      "%": "%",
    };
  return format.replace(/%(.)/g, (code, letter: string) => {
    const value = values[letter];
    if (value === undefined) throw new RangeError(`strftime_now() does not know ${code}`);
    return value;
  });
}
