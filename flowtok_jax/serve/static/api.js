// The page of the interface: openapi.json, for people.

const $ = (selector) => document.querySelector(selector);

function element(name, text = "", ...children) {
  const made = document.createElement(name);
  made.append(text, ...children);
  return made;
}

const api = await (await fetch("/openapi.json")).json();
const resolve = (schema) => schema.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema;

// Says a type in a few words, as "integer from 1 to 16".
function told(schema) {
  schema = resolve(schema);
  if (schema.anyOf) return schema.anyOf.filter((s) => s.type !== "null").map(told).join(" or ");
  if (schema.enum) return schema.enum.join(", ");
  if (schema.const !== undefined) return String(schema.const);
  let text = schema.type ?? "anything";
  if (schema.items) text += ` of ${told(schema.items)}`;
  if (schema.minimum !== undefined) text += ` from ${schema.minimum}`;
  if (schema.maximum !== undefined) text += ` to ${schema.maximum}`;
  if (schema.maxLength !== undefined) text += `, ${schema.maxLength} characters at most`;
  return text;
}

function table(schema) {
  const found = resolve(schema), made = element("table");
  made.append(element("tr", "", ...["field", "value", "meaning"].map((name) => element("th", name))));
  for (const [name, field] of Object.entries(found.properties ?? {})) {
    const must = (found.required ?? []).includes(name) ? " (needed)" : "";
    made.append(element("tr", "", element("td", name + must), element("td", told(field)), element("td", field.description ?? "")));
  }
  return made;
}

$("#title").textContent = document.title = `${api.info.title}, by HTTP`;
$("#about").textContent = api.info.description;
$("#client").textContent = `client = openai.OpenAI(base_url="${location.origin}/v1", api_key="none")
picture = client.images.generate(prompt="duck", extra_body={"seed": 1}).data[0]
open("duck.png", "wb").write(base64.b64decode(picture.b64_json))`;
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const section = element("section", "", element("h2", `${method.toUpperCase()} ${path}`), element("p", operation.summary));
    for (const [kind, body] of Object.entries(operation.requestBody?.content ?? {})) {
      section.append(element("h3", kind), table(body.schema));
    }
    const answers = Object.entries(operation.responses).map(([status, a]) => `${status}: ${a.description}`);
    section.append(element("p", answers.join(" ")));
    $("#paths").append(section);
  }
}
