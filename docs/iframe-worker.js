/* Search in pages that are opened from the disk. Browsers start no Worker there, so the same script runs in a hidden
   frame; messages in both directions are copied, as a Worker's are. On a web server this file does nothing. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.title = "Search";
      this.frame.srcdoc = "<!doctype html><title>Search</title>";
      this.frame.addEventListener("load", () => this.start(new URL(url, document.baseURI)), { once: true });
      document.body.append(this.frame);
    }

    start(url) {
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) }));
      const script = inside.document.createElement("script");
      script.src = url;
      script.addEventListener("load", () => {
        this.deliver = (data) => inside.dispatchEvent(new inside.MessageEvent("message", { data }));
        this.waiting.splice(0).forEach(this.deliver);
      });
      script.addEventListener("error", () => this.dispatchEvent(new ErrorEvent("error", { message: `${url}` })));
      inside.document.head.append(script);
    }

    postMessage(data) {
      const copy = structuredClone(data);
      this.deliver ? this.deliver(copy) : this.waiting.push(copy);
    }

    terminate() {
      this.frame.remove();
    }
  };
}
