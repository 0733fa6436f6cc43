// The official SDKs for Node.js, asked as a program would ask them.
// One JSON command a line on standard input ({name, url, sdk, …}), one JSON answer a line on
// standard output. `url` is a root without a path, `sdk` the package ("openai" or "openai-6").

import { createInterface } from "node:readline";
import Anthropic from "@anthropic-ai/sdk";
import { z } from "zod";

// A program would import these two; here the test says which release it wants.
const load = async (sdk) => ({
  OpenAI: (await import(sdk)).default,
  ...(await import(`${sdk}/helpers/zod`)),
});

const clientOf = async ({ sdk, url, key = "unused" }) => {
  const { OpenAI } = await load(sdk);
  return new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
};
const anthropicOf = ({ url, key = "unused" }) =>
  new Anthropic({ baseURL: url, apiKey: key, maxRetries: 0 });

const collect = async (stream) => {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
};

const Person = z.object({
  name: z.literal("Grace"),
  whereabouts: z.object({ city: z.enum(["Oslo", "Rome"]), zone: z.literal("CET") }),
});

const commands = {
  versions: async () => ({ node: process.versions.node }),

  async models(command) {
    return (await collect(await (await clientOf(command)).models.list())).map((one) => one.id);
  },

  async chat(command) {
    return (await clientOf(command)).chat.completions.create(command.body);
  },

  async stream(command) {
    const client = await clientOf(command);
    return collect(await client.chat.completions.create({ ...command.body, stream: true }));
  },

  async helper(command) {
    const client = await clientOf(command);
    const pieces = [];
    const runner = client.chat.completions.stream(command.body).on("content", (piece) => {
      pieces.push(piece);
    });
    return { pieces, final: await runner.finalChatCompletion() };
  },

  async parsed(command) {
    const { zodResponseFormat } = await load(command.sdk);
    const response_format = zodResponseFormat(Person, "person");
    const client = await clientOf(command);
    const answer = await client.chat.completions.parse({ ...command.body, response_format });
    return answer.choices[0].message.parsed;
  },

  // The SDK's own loop: it calls the functions, and asks again with what they said.
  async agent(command) {
    const client = await clientOf(command);
    const called = [];
    const tool = (name) => ({
      type: "function",
      function: {
        name,
        parse: JSON.parse,
        parameters: { type: "object", properties: {} },
        function: (given) => {
          called.push([name, given]);
          return `${name}: rain`;
        },
      },
    });
    const tools = ["weather", "time"].map(tool);
    const runner = client.chat.completions.runTools({ ...command.body, tools });
    return { final: await runner.finalContent(), called };
  },

  async embeddings(command) {
    const answer = await (await clientOf(command)).embeddings.create(command.body);
    return answer.data.map((one) => Array.from(one.embedding));
  },

  async responses(command) {
    const client = await clientOf(command);
    const whole = await client.responses.create(command.body);
    const events = await collect(await client.responses.create({ ...command.body, stream: true }));
    return { text: whole.output_text, output: whole.output, kinds: events.map((one) => one.type) };
  },

  async messages(command) {
    return anthropicOf(command).messages.create(command.body);
  },

  async messages_stream(command) {
    const stream = anthropicOf(command).messages.stream(command.body);
    const events = await collect(stream);
    return { kinds: events.map((one) => one.type), final: await stream.finalMessage() };
  },

  // Leaves after the first event, as a person does who has read enough.
  async leave(command) {
    const client = await clientOf(command);
    const stream = await client.chat.completions.create({ ...command.body, stream: true });
    for await (const event of stream) return event.choices[0].delta;
  },
};

const failure = (error) => ({
  class: error.constructor.name,
  status: error.status ?? null,
  code: error.code ?? null,
  message: String(error.message),
});

for await (const line of createInterface({ input: process.stdin })) {
  const { name, ...command } = JSON.parse(line);
  let answer;
  try {
    answer = { answer: (await commands[name](command)) ?? null };
  } catch (error) {
    answer = { failure: failure(error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
