// Keys that work everywhere on the page.

export const KEYS = [
  ["Enter", "Send"],
  ["Shift Enter", "New line"],
  ["↑", "Edit the last message, in an empty field"],
  ["Esc", "Stop the answer"],
  ["Alt A", "Answer now: end the thinking"],
  ["Alt T", "Thinking: off, auto, on"],
  ["Ctrl K", "Search conversations"],
  ["Ctrl Shift O", "New conversation"],
  ["Ctrl ,", "Settings"],
  ["Ctrl /", "This list"],
];

/** Listens until the function it returns is called. do: what each does. */
export function listen({ app, search, create, settings, help }) {
  const key = (event) => {
    const control = event.ctrlKey || event.metaKey;
    const dialog = document.querySelector("dialog[open]");
    const pressed = event.code.replace(/^Key/, "");
    let act = null;
    if (event.key === "Escape" && !dialog && app.running(app.chat.id)) act = () => app.stop();
    else if (dialog) return;
    else if (event.altKey && !control && pressed === "A") act = () => app.answerNow();
    else if (event.altKey && !control && pressed === "T") act = () => nextMode(app);
    else if (control && !event.shiftKey && pressed === "K") act = search;
    else if (control && event.shiftKey && pressed === "O") act = create;
    else if (control && event.key === ",") act = settings;
    else if (control && event.key === "/") act = help;
    if (!act) return;
    event.preventDefault();
    act();
  };
  document.addEventListener("keydown", key);
  return () => document.removeEventListener("keydown", key);
}

function nextMode(app) {
  const ways = ["off", "auto", "on"].filter((way) => app.modes.includes(way));
  const next = ways[(ways.indexOf(app.chat.settings.thinking) + 1) % ways.length];
  app.set({ thinking: next });
  app.say(`Thinking ${next}.`);
}
