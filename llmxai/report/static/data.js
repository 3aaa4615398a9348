"use strict";
// Hands the text of this page to the index that shows it in a frame; from a file no page has an origin to name
parent.postMessage(document.getElementById("data").textContent, location.protocol === "file:" ? "*" : location.origin);
