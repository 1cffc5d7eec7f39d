// The chat box: one conversation with the chosen model, shown as text and nothing but text.

import { stream } from "/stream.js";

const MESSAGES_KEPT = 16;

export function chatBox({ talk, form, question, send, model }) {
  let messages = [];
  let asking = null;

  function bubble(role, text) {
    const node = document.createElement("p");
    node.className = role;
    node.textContent = text;
    talk.append(node);
    talk.scrollTop = talk.scrollHeight;
    return node;
  }

  async function ask(text) {
    bubble("user", text);
    messages = [...messages, { role: "user", content: text }].slice(-MESSAGES_KEPT);
    const shown = bubble("assistant", "…");
    let answer = "";
    asking = new AbortController();
    send.textContent = "Stop";
    try {
      for await (const event of stream("/api/ask", { body: { model: model.value, messages }, signal: asking.signal })) {
        if (event.error) throw new Error(event.error);
        answer += event.text || "";
        shown.textContent = answer.trimStart() || "…";
        talk.scrollTop = talk.scrollHeight;
      }
    } catch (error) {
      if (error.name !== "AbortError") {
        shown.className = "error";
        shown.textContent = error.message;
      }
    }
    if (answer) messages.push({ role: "assistant", content: answer.trim() });
    else messages.pop();
    if (shown.textContent === "…") shown.textContent = "(no answer)";
    asking = null;
    send.textContent = "Ask";
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = question.value.trim();
    if (asking) asking.abort();
    else if (text && model.value) {
      question.value = "";
      ask(text);
    }
  });
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!asking) form.requestSubmit();
    }
  });
  model.addEventListener("change", () => {
    messages = [];
    talk.replaceChildren();
  });
}
