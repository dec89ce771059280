// Runs before the page is drawn, so that a chosen theme does not flash.
(() => {
  let theme = null;
  try {
    theme = JSON.parse(localStorage.getItem("qwen3.theme"));
  } catch {
    // The system's theme, then.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
