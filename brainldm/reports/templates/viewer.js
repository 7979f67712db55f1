(function () {
  "use strict";
  var root = document.getElementById("viewer");
  var start = document.getElementById("viewer-start");
  var note = document.getElementById("viewer-note");
  var sides = ["left", "right"];

  function say(state, text) {
    root.dataset.state = state;
    note.textContent = text;
  }

  function runLibrary() {
    var script = document.createElement("script");
    script.textContent = document.getElementById("viewer-library").textContent;
    document.head.appendChild(script);
    return window.niivue;
  }

  async function show(panes, side, number) {
    var volumes = JSON.parse(document.getElementById("viewer-volumes").textContent);
    var image = await window.niivue.NVImage.loadFromBase64({ base64: volumes[number], name: "brain.nii.gz" });
    image.cal_min = 0;
    image.cal_max = 1;
    var pane = panes[side];
    while (pane.volumes.length) pane.removeVolume(pane.volumes[0]);
    pane.addVolume(image);
    root.dataset[side] = String(number);
  }

  async function open() {
    if (!document.createElement("canvas").getContext("webgl2")) {
      say("unsupported", "This browser has no WebGL 2, so there is no viewer; the pictures on this page show the same brains.");
      return;
    }
    start.disabled = true;
    say("opening", "Opening ...");
    try {
      var library = runLibrary();
      document.getElementById("viewer-panes").hidden = false;
      var panes = {};
      for (var side of sides) {
        panes[side] = new library.Niivue({ backColor: [0, 0, 0, 1], show3Dcrosshair: true, crosshairWidth: 0.5, isRadiologicalConvention: false });
        await panes[side].attachTo("viewer-canvas-" + side);
        panes[side].setSliceType(panes[side].sliceTypeMultiplanar);
      }
      for (let side of sides) {
        var choice = document.getElementById("viewer-" + side);
        await show(panes, side, Number(choice.value));
        choice.addEventListener("change", function (event) {
          say("opening", "Opening ...");
          show(panes, side, Number(event.target.value)).then(function () { say("ready", ""); });
        });
      }
      panes.left.broadcastTo([panes.right], { "2d": true, "3d": true });
      panes.right.broadcastTo([panes.left], { "2d": true, "3d": true });
      start.hidden = true;
      say("ready", "");
    } catch (error) {
      say("failed", "The viewer could not be opened (" + error.message + "); the pictures on this page show the same brains.");
    }
  }

  start.addEventListener("click", open);
})();
