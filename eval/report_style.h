// The report's style sheet. Two palettes; one colour each for what was trained and for what it is
// measured against, kept through all charts, the table and the text. Fonts are the reader's own.
#pragma once

#include <string_view>

namespace nibble {

inline constexpr std::string_view kReportStyle = R"css(
:root{color-scheme:light dark;--paper:#fff;--panel:#f5f6f8;--ink:#15181e;--muted:#5c6470;--rule:#e3e6ea;
--axis:#9aa2ad;--trained:#1f55d0;--trained-soft:#e8eefc;--baseline:#b4500b;--source:#39794a;--other:#7a828d}
@media(prefers-color-scheme:dark){:root{--paper:#101318;--panel:#191d24;--ink:#e9ecf1;--muted:#9aa3b0;
--rule:#272d36;--axis:#5b6470;--trained:#86aefc;--trained-soft:#1b2740;--baseline:#f0a060;--source:#7cc48e;
--other:#8d96a3}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:17px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif}
main,header,footer{max-width:960px;margin:0 auto;padding:0 24px}
header{padding-top:72px}
section{margin-top:76px}
h1{font-size:clamp(29px,5.4vw,46px);line-height:1.14;letter-spacing:-.022em;font-weight:680;margin:0 0 22px;
text-wrap:balance}
h2{font-size:23px;line-height:1.3;letter-spacing:-.012em;font-weight:660;margin:0 0 8px}
h3{font-size:15px;font-weight:640;margin:28px 0 8px}
p{margin:0 0 14px;max-width:66ch}
.eyebrow{font-size:14px;color:var(--muted);margin-bottom:18px}
.lead{font-size:19px;line-height:1.55;color:var(--muted);text-wrap:pretty}
.lead b{color:var(--ink);font-weight:600}
.lede{color:var(--muted);margin-bottom:22px}
.caption{font-size:14px;color:var(--muted);margin:18px 0 4px;max-width:none}
b.trained,b.baseline,b.source{font-weight:640}
b.trained,.name.trained{color:var(--trained)}b.baseline,.name.baseline{color:var(--baseline)}
b.source,.name.source{color:var(--source)}
a{color:var(--trained)}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:0;margin:44px 0 0;border-top:1px solid var(--rule);
border-bottom:1px solid var(--rule)}
.tile{padding:18px 16px 18px 0}
.tile+.tile{padding-left:16px;border-left:1px solid var(--rule)}
.tile dt{font-size:13px;color:var(--muted)}
.tile dd{margin:2px 0 0}
.tile .figure{font-size:27px;line-height:1.25;font-weight:640;letter-spacing:-.02em;
font-variant-numeric:tabular-nums}
.tile .before{display:block;font-size:13px;color:var(--muted)}
.bar{display:block;height:5px;margin:10px 0 5px;background:var(--rule);border-radius:3px;overflow:hidden}
.bar span{display:block;height:100%;background:var(--trained)}
.bar.thin{height:4px;margin:3px 0 0}.bar.baseline span{background:var(--baseline)}
svg.layers{max-width:130px;margin:6px 0 0 auto}svg.layers rect{fill:var(--trained)}
.scroll{overflow-x:auto}.scroll .numbers{max-width:none;white-space:nowrap}
.heat td{padding-right:10px}
table{border-collapse:collapse;width:100%;font-size:15px;font-variant-numeric:tabular-nums}
.figures th,.figures td{text-align:right;padding:11px 0 11px 14px;vertical-align:top;
border-bottom:1px solid var(--rule)}
.figures tr>:first-child{text-align:left;padding-left:0;width:26%}
.figures td{white-space:nowrap}
.figures thead th{font-weight:640;font-size:13px;line-height:1.35;padding-bottom:12px;
border-bottom:1px solid var(--axis)}
.figures thead small{display:block;font-weight:400;font-size:11.5px;line-height:1.35;color:var(--muted);
margin-top:4px}
.figures .name{font-weight:620;display:block;overflow-wrap:anywhere}
.figures .note{display:block;font-weight:400;font-size:12.5px;line-height:1.4;color:var(--muted);max-width:32ch}
.figures .err{display:block;font-size:12px;color:var(--muted)}
.figures tbody tr.trained>*{background:var(--trained-soft)}
.figures tbody tr.trained>:first-child{box-shadow:-14px 0 0 var(--trained-soft)}
.figures tbody tr.trained>:last-child{box-shadow:14px 0 0 var(--trained-soft)}
.warning{border-left:2px solid var(--axis);padding-left:14px;margin-top:16px;font-size:14px;
color:var(--muted);max-width:none}
svg{display:block;width:100%;height:auto;overflow:visible}
svg.narrow{display:none}
.rule{stroke:var(--rule);stroke-width:1}.axis{stroke:var(--axis);stroke-width:1}
.broken{stroke-dasharray:3 5}
.tick{font-size:12px;fill:var(--muted);font-variant-numeric:tabular-nums}
.label{font-size:13px;fill:var(--other)}.strong{font-weight:640}
.label.trained{fill:var(--trained);font-weight:640}.label.baseline{fill:var(--baseline);font-weight:640}
.label.source{fill:var(--source)}.label.other{fill:var(--muted)}
.dot{stroke:var(--paper);stroke-width:1.5}
.dot.trained{fill:var(--trained)}.dot.baseline{fill:var(--baseline)}.dot.source{fill:var(--source)}
.dot.other{fill:var(--other)}
.dot.quiet{fill-opacity:.38}
.curve{fill:none;stroke-width:1.5;stroke-linejoin:round;stroke-linecap:round}
.curve.strong{stroke-width:2.2}
.curve.trained{stroke:var(--trained)}.curve.baseline{stroke:var(--baseline)}
.curve.other{stroke:var(--other);stroke-opacity:.6}
.gain{stroke:var(--trained);stroke-width:1.6;stroke-dasharray:2 4;stroke-linecap:round}
.gain-head{fill:var(--trained)}
.ring{fill:none;stroke:var(--ink);stroke-width:1.3}
.stem{stroke-width:1.3}.stem.trained{stroke:var(--trained)}.stem.baseline{stroke:var(--baseline)}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:22px 26px}
figure{margin:0}
figure.small figcaption{font:13px/1.4 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace;
margin-bottom:2px}
pre,code{font-family:ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace;font-size:.86em}
pre{background:var(--panel);border-radius:8px;padding:15px 17px;overflow-x:auto;line-height:1.55;margin:0 0 14px;
white-space:pre-wrap;overflow-wrap:anywhere}
.prompt{margin:26px 0 0}
.answers{display:grid;grid-template-columns:minmax(120px,190px) 1fr;border-top:1px solid var(--rule);margin:0}
.answers dt,.answers dd{padding:11px 0;border-bottom:1px solid var(--rule);margin:0;min-width:0}
.answers dt{font-size:14px;padding-right:16px}
.answers dd{font:14px/1.55 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace;
white-space:pre-wrap;overflow-wrap:anywhere}
.answers .same{color:var(--muted)}
mark{background:none;color:inherit}
mark::before{content:"";border-left:2px solid var(--baseline);margin-right:2px}
details{margin:0 0 14px}
summary{cursor:pointer;font-size:15px;color:var(--muted);padding:6px 0}
summary:focus-visible,a:focus-visible{outline:2px solid var(--trained);outline-offset:3px;border-radius:3px}
.plain th,.plain td{text-align:left;padding:7px 14px 7px 0;border-bottom:1px solid var(--rule);
vertical-align:top;font-weight:400;overflow-wrap:anywhere}
.plain th{color:var(--muted);white-space:nowrap}
.numbers{font-size:13.5px;max-width:620px}
.numbers th,.numbers td{text-align:right;padding:4px 0 4px 10px;border-bottom:1px solid var(--rule);font-weight:400}
.numbers th{color:var(--muted);vertical-align:bottom}
.numbers tr.moved td.trained{color:var(--trained);font-weight:640}
footer{margin-top:84px;padding-bottom:56px;font-size:14px;color:var(--muted)}
@media(max-width:720px){
body{font-size:16px}
main,header,footer{padding-left:20px;padding-right:20px}
header{padding-top:40px}section{margin-top:58px}
.lead{font-size:17px}
svg.wide{display:none}svg.narrow{display:block;margin:0 auto}
.tiles{grid-template-columns:1fr 1fr}
.tile:nth-child(odd){padding-left:0;border-left:0}
.tile:nth-child(n+3){border-top:1px solid var(--rule)}
.panels{grid-template-columns:1fr 1fr;gap:18px 14px}
.figures,.figures thead,.figures tbody,.figures tr,.figures th,.figures td{display:block;text-align:left}
.figures thead{border-bottom:1px solid var(--axis);padding-bottom:14px;margin-bottom:8px}
.figures thead th,.figures td,.figures tbody th{border:0;padding:0}
.figures thead th{padding:5px 0}
.figures thead th:first-child{display:none}
.figures thead small{display:inline;margin-left:8px;font-size:13px}
.figures tbody tr{display:grid;grid-template-columns:1fr 1fr 1fr;gap:10px 12px;padding:16px 0;
border-bottom:1px solid var(--rule)}
.figures tbody th{grid-column:1/-1}
.figures .note{max-width:none}
.figures td::before{content:attr(data-column);display:block;font-size:12px;color:var(--muted)}
.figures tbody tr.trained{background:var(--trained-soft);margin:0 -20px;padding:16px 20px}
.figures tbody tr.trained>*,.figures tbody tr.trained>:first-child,.figures tbody tr.trained>:last-child{
background:none;box-shadow:none}
.figures tr>:first-child{width:auto}
.answers{grid-template-columns:1fr}
.answers dt{border-bottom:0;padding-bottom:0}.answers dd{padding-top:3px}
.plain tr,.plain th,.plain td{display:block}
.plain th{border:0;padding-bottom:0}
.numbers{font-size:12.5px}.numbers th,.numbers td{padding-left:4px}
}
@media(max-width:400px){.panels{grid-template-columns:1fr 1fr}}
@media print{section{break-inside:avoid}body{font-size:12px}}
)css";

}  // namespace nibble
