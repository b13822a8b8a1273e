package stats

// The page is pageTop, then the template bodySource, then pageEnd. All of it is drawn here, so that it can be read without
// a script. The script fetches the page again and puts its live parts in the place of those shown, sorts and filters the
// table, and writes times as the viewer's clock has them.
const pageTop = `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Duplicates · traefik-idem</title>
<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E%3Ccircle cx='12' cy='16' r='9' fill='%230f766e'/%3E%3Ccircle cx='21' cy='16' r='8' fill='none' stroke='%230f766e' stroke-width='2' stroke-dasharray='3 3'/%3E%3C/svg%3E">
<style>` + pageStyle + `</style>
</head>
<body>
`

const pageEnd = `<script>` + pageScript + `</script>
</body>
</html>
`

const bodySource = `<a class="skip" href="#endpoints">Skip to the endpoints</a>
<header>
<svg class="mark" viewBox="0 0 32 32" aria-hidden="true"><circle cx="12" cy="16" r="9"></circle><circle class="ghost" cx="21" cy="16" r="8"></circle></svg>
<h1>traefik-idem</h1>
<p class="state" id="state" data-live><span class="dot {{.Health}}"></span>{{.HealthText}}</p>
<p class="clock"><span id="clock" data-live>Updated <time datetime="{{.GeneratedAt}}">{{.Generated}}</time></span> <button type="button" id="pause" hidden>Pause</button></p>
</header>
<main>
<div id="trouble" role="status" data-live>{{if or .Trouble .Unshared}}<p class="alert {{if .Trouble}}bad{{else}}warn{{end}}"><strong>{{if .Trouble}}Redis cannot be used.{{else}}Keys work, but statistics are not shared.{{end}}</strong> These numbers are {{if .Loaded}}the last known ones and what this Traefik has counted since{{else}}what this Traefik has counted since it started: those of all are not known yet{{end}}. <code>{{.Trouble}}{{.Unshared}}</code></p>{{end}}</div>
<section id="figures" aria-label="Headline figures" data-live>
<div class="lead"><p class="huge" id="duplicates">{{.Headline}}</p><p class="what">{{.Label}}</p><p class="quiet">{{.Since}}</p></div>
<dl>
<div class="tile {{.NeedsClass}}"><dt><a href="#look" id="tile">Needs a look</a></dt><dd id="needs">{{.Needs}}</dd><dd class="quiet">{{.NeedsNote}}</dd></div>
<div><dt>Share of protected traffic</dt><dd>{{.Share}}</dd><dd class="quiet">of {{.Protected}} requests</dd></div>
<div><dt>Last duplicate</dt><dd>{{if .LastAt}}<time datetime="{{.LastAt}}" title="{{.Last}}">{{.LastAgo}}</time>{{else}}none yet{{end}}</dd></div>
</dl>
</section>
<section id="charts" aria-label="Duplicates and problems over time" data-live>
{{range .Charts}}<figure>
<figcaption><strong>{{.Title}}, per {{.Unit}}</strong><span class="legend quiet"><span class="key stopped">duplicates</span><span class="key trouble">problems</span></span></figcaption>
<div class="plot" id="{{.ID}}" data-unit="{{.Unit}}" data-first="{{.First}}" data-step="{{.Step}}" data-counts="{{.Counts}}" data-problems="{{.Problems}}">
<svg role="img" aria-label="{{.Summary}}" viewBox="0 0 {{.Width}} {{.Height}}" preserveAspectRatio="none">{{range .Bars}}<rect class="{{.Class}}" x="{{.X}}" y="{{.Y}}" width="8" height="{{.H}}"><title>{{.Text}}</title></rect>{{end}}</svg>
</div>
<svg class="ticks" aria-hidden="true">{{range .Ticks}}<line x1="{{.X}}" x2="{{.X}}" y2="4"></line><text class="{{.Class}}" x="{{.X}}" y="16">{{.Text}}</text>{{end}}</svg>
<p class="readout quiet" id="{{.ID}}-value" role="status">{{.Peak}}</p>
<details id="{{.ID}}-table"><summary>As a table</summary>{{if .Rows}}<table><thead><tr><th scope="col">{{.Unit}}</th><th scope="col" class="number">duplicates</th><th scope="col" class="number">problems</th></tr></thead><tbody>
{{range .Rows}}<tr><td><time datetime="{{.At}}">{{.Text}}</time></td><td class="number">{{.Duplicates}}</td><td class="number">{{.Problems}}</td></tr>
{{end}}</tbody></table>{{else}}<p class="quiet">None.</p>{{end}}</details>
</figure>
{{end}}</section>
<section id="look" aria-labelledby="look-title" tabindex="-1">
<h2 id="look-title">Needs a look</h2>
<div id="problems" class="{{.NeedsClass}}" data-live>{{if .Problems}}<p class="quiet">In the last hour, <a href="https://github.com/example/traefik-idem/blob/main/docs/statistics.md#needs-a-look">and what to do about each</a>:</p>
<ul>
{{range .Problems}}<li class="{{.Class}}"><span class="count">{{.LastHour}}</span><span class="name">{{.Name}}</span><span class="means quiet">{{.Means}}</span><span class="quiet">last <time datetime="{{.LastAt}}">{{.LastAgo}}</time></span></li>
{{end}}</ul>{{else}}<p class="calm"><span class="dot"></span>Nothing. <span class="quiet">Unknown outcomes, mismatches, and what happens while Redis is away are listed here.</span></p>{{end}}</div>
<div class="bar keys"><h3 id="keys-title">Keys that wait for a decision</h3>
<form class="lookup" action="./#key" method="get"><label for="id">Look a key up</label> <input id="id" name="id" value="{{.Desk.ID}}" autocomplete="off" spellcheck="false" placeholder="id, from a 409 or a log line"> <button>Look up</button></form></div>
<div id="keys" data-live>{{if .Keys}}<ul aria-labelledby="keys-title">
{{range .Keys}}<li class="{{.Class}}"><a class="id" id="k{{.ID}}" href="./?id={{.ID}}#key"><code>{{.ID}}</code></a><span><strong class="name">{{.State}}</strong>{{if .SinceAt}} <time datetime="{{.SinceAt}}" title="{{.Since}}">{{.SinceAgo}}</time>{{end}}</span><span class="two where">{{.Where}}</span><span class="quiet">{{if .UntilAt}}{{.Held}} <time class="exact" datetime="{{.UntilAt}}">{{.Until}}</time>{{end}}{{if .Traefik}} at {{.Traefik}}{{end}}</span>{{if $.Desk.Admin}}<span class="acts">{{if .Running}}<a id="f{{.ID}}" href="./?id={{.ID}}&amp;do=force#key">Release<span class="unseen"> {{.ID}}</span></a>{{else if .Unknown}}<a id="r{{.ID}}" href="./?id={{.ID}}&amp;do=release#key">Release<span class="unseen"> {{.ID}}</span></a> <a id="s{{.ID}}" href="./?id={{.ID}}&amp;do=settle#key">Settle<span class="unseen"> {{.ID}}</span></a>{{end}}</span>{{end}}</li>
{{end}}</ul>{{else if .Desk.Unlisted}}<p class="alert bad">They cannot be listed now. <code>{{.Desk.Unlisted}}</code></p>{{else}}<p class="calm"><span class="dot"></span>None. <span class="quiet">Keys with an unknown outcome, and requests that run for longer than a minute, are listed here.</span></p>{{end}}</div>
<div id="key" tabindex="-1">{{if or .Desk.ID .Desk.Said}}<div class="panel">
<h3>{{if .Desk.ID}}Key <code>{{.Desk.ID}}</code>{{else}}That was not possible{{end}}</h3>
{{if .Desk.Said}}<p class="alert {{if .Desk.Good}}good{{else}}bad{{end}}" role="status">{{.Desk.Said}}</p>{{end}}
{{range .Found}}<p><strong class="{{.Class}}">{{.State}}.</strong> {{.Means}}</p>
<dl class="settings">
<div><dt>Request</dt><dd>{{.Where}}</dd></div>
{{if .SinceAt}}<div><dt>Since</dt><dd><time class="exact" datetime="{{.SinceAt}}">{{.Since}}</time> ({{.SinceAgo}})</dd></div>{{end}}
{{if .UntilAt}}<div><dt>{{.Held}}</dt><dd><time class="exact" datetime="{{.UntilAt}}">{{.Until}}</time></dd></div>{{end}}
{{if .Traefik}}<div><dt>Traefik</dt><dd>{{.Traefik}}</dd></div>{{end}}
</dl>
{{if $.Release}}<form class="confirm" action="./settle" method="post"><h4>Release this key?</h4>
<p>The next request with it runs, and the backend is called again. Do this only if you have found out at the backend that nothing was done: otherwise it is done twice.</p>
<input type="hidden" name="token" value="{{$.Desk.Token}}"><input type="hidden" name="id" value="{{.ID}}"><input type="hidden" name="seen" value="{{.Version}}"><input type="hidden" name="do" value="release">
<p><button class="danger">Yes, release it</button> <a href="./?id={{.ID}}#key">Cancel</a></p></form>
{{else if $.Force}}<form class="confirm" action="./settle" method="post"><h4>Take this key from a Traefik that is dead?</h4>
<p>Its request has not ended as far as anybody knows. If its Traefik is not heard of for 3 seconds, the key is released: the next request with it runs, and the backend is called again. From a Traefik that lives it is not taken.</p>
<input type="hidden" name="token" value="{{$.Desk.Token}}"><input type="hidden" name="id" value="{{.ID}}"><input type="hidden" name="seen" value="{{.Version}}"><input type="hidden" name="do" value="force">
<p><button class="danger">Yes, take it</button> <a href="./?id={{.ID}}#key">Cancel</a></p></form>
{{else if $.Settle}}<form class="confirm" action="./settle" method="post"><h4>Settle this key by hand?</h4>
<p>You say that the request was carried out, and what its answer is. Duplicates get this answer from now on, and the backend is not called. Do this only if you have found out at the backend that it was done.</p>
<input type="hidden" name="token" value="{{$.Desk.Token}}"><input type="hidden" name="id" value="{{.ID}}"><input type="hidden" name="seen" value="{{.Version}}"><input type="hidden" name="do" value="settle">
<p class="fields"><label>Status <input name="status" inputmode="numeric" pattern="[2-5][0-9][0-9]" required value="201"></label>
<label>Content-Type <input name="contentType" value="application/json"></label></p>
<p><label>Body <textarea name="body" rows="4" spellcheck="false"></textarea></label></p>
<p><button class="danger">Yes, settle it</button> <a href="./?id={{.ID}}#key">Cancel</a></p></form>
{{else if $.Desk.Admin}}<p class="acts">{{if .Running}}<a href="./?id={{.ID}}&amp;do=force#key">Release…</a>{{else if .Free}}{{else}}<a href="./?id={{.ID}}&amp;do=release#key">Release…</a>{{end}}{{if .Unknown}} <a href="./?id={{.ID}}&amp;do=settle#key">Settle…</a>{{end}} <a href="./#look">Close</a></p>
{{else}}<p class="quiet">{{if $.Desk.User}}You may look. {{if $.Desk.MayLogIn}}An admin may settle this key.{{end}}{{end}} <a href="./#look">Close</a></p>{{end}}
{{end}}</div>{{end}}</div>
{{if .Desk.Admin}}<details id="find"><summary>Find the key of a request</summary><form class="confirm" action="./find" method="post">
<p class="quiet">As its client sent it. Nothing of this is kept or logged. The key is the value of the first source in the setting <code>key</code>. If the request had its key elsewhere, leave that field empty, and put the key where the client did: into the URL or the headers.</p>
<input type="hidden" name="token" value="{{.Desk.Token}}">
<p class="fields"><label>Method <input name="method" value="POST" required></label> <label>URL <input name="url" type="url" required placeholder="https://shop.example/api/pay"></label> <label>Key <input name="key" autocomplete="off" spellcheck="false"></label></p>
<p><label>Headers that set callers apart, one a line <textarea name="headers" rows="2" spellcheck="false" placeholder="Authorization: Bearer …"></textarea></label></p>
<p><button>Find</button></p></form></details>
{{else if .Desk.MayLogIn}}<p class="quiet">{{if .Desk.User}}You may look.{{end}} <a href="./login">Log in as an admin</a> to settle keys.</p>
{{else if .Keys}}<p class="quiet">Nobody may settle keys here. <code>stats.admins</code> and <code>stats.adminsFile</code> name those who may.</p>
{{end}}</section>
<section id="endpoints" aria-labelledby="endpoints-title" tabindex="-1">
<div class="bar"><h2 id="endpoints-title">Endpoints</h2><p class="quiet" id="shown" role="status">{{.Counted}}</p>
<label id="filter" hidden>Filter <input type="search" autocomplete="off" spellcheck="false" placeholder="method, host or path"></label></div>
<div class="scroll" role="region" aria-label="Table of endpoints" tabindex="0">
<table>
<caption class="unseen">Duplicates and problems by endpoint</caption>
<thead><tr><th scope="col" class="method" data-key="method">Method</th><th scope="col" class="host" data-key="host">Host</th><th scope="col" class="path" data-key="path">Path</th><th scope="col" class="number" data-key="duplicates" aria-sort="descending">Duplicates</th><th scope="col" class="number troubles" data-key="troubles">Problems</th><th scope="col" class="last" data-key="last">Last seen</th></tr></thead>
<tbody id="rows">
{{range .Endpoints}}<tr{{if ne .Troubles "0"}} class="some"{{end}} data-duplicates="{{.Number}}" data-troubles="{{.Troubles}}" data-last="{{.SeenUnix}}"><td class="method">{{.Method}}</td><td class="host">{{.Host}}</td><td class="path"><span class="two"{{if .Long}} title="{{.Path}}"{{end}}>{{.Path}}</span><span class="small">{{.Method}} · {{.Host}}</span><span class="became">{{range .Outcomes}}<span class="{{.Class}}">{{.Count}} {{.Name}}</span> {{end}}</span></td><td class="number">{{.Duplicates}}<svg class="share" aria-hidden="true">{{range .Shares}}<rect class="{{.Class}}" x="{{.X}}%" width="{{.Width}}%" height="3"></rect>{{end}}</svg></td><td class="number troubles">{{.Troubles}}</td><td class="last"><time datetime="{{.SeenAt}}">{{.SeenAgo}}</time></td></tr>
{{else}}<tr class="empty"><td colspan="6">No duplicate yet. As soon as a key comes a second time, its endpoint is listed here.</td></tr>
{{end}}</tbody>
<tbody id="nohit" hidden><tr class="empty"><td colspan="6">No endpoint matches the filter.</td></tr></tbody>
</table>
</div>
<p class="quiet" id="more" data-live>{{.More}}</p>
</section>
<div class="pair">
<section aria-labelledby="outcomes-title"><h2 id="outcomes-title">What became of the requests</h2>
<ul id="outcomes" data-live>
{{range .Outcomes}}<li class="{{.Class}}"><span class="name">{{.Name}}</span><span class="count">{{.Count}}</span><span class="quiet">{{.Means}}</span><svg class="share" viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true"><rect width="{{.Share}}" height="1"></rect></svg></li>
{{end}}</ul></section>
<div>
<section aria-labelledby="memory-title"><h2 id="memory-title">Memory</h2>
<div id="memory" class="{{.MemoryClass}}" data-live>
<p><strong class="big">{{.Memory}}</strong> <span class="quiet">{{.MemoryNote}}{{if .MeasuredAt}} Measured <time datetime="{{.MeasuredAt}}" title="{{.Measured}}">{{.MeasuredAgo}}</time>; this is done at most every 30 seconds.{{end}}</span></p>
<svg class="share" viewBox="0 0 100 1" preserveAspectRatio="none" role="img" aria-label="{{.MemoryWidth}} % of 10 MB"><rect width="{{.MemoryWidth}}" height="1"></rect></svg>
<p class="axis quiet"><span>0</span><span>10 MB</span></p>
{{if .Warning}}<p class="alert warn"><strong>More than 10 MB.</strong> Kept answers take the most. Lower <code>ttl</code> or <code>maxResponseBodyBytes</code>, or name fewer <code>endpoints</code>. To keep that much, make sure that Redis has the memory and the policy <code>noeviction</code>.</p>{{end}}
</div></section>
<section aria-labelledby="settings-title"><h2 id="settings-title">Settings in force</h2>
{{range .Middlewares}}<details><summary>{{.Name}}</summary><dl class="settings">
{{range .Settings}}<div><dt>{{.Name}}</dt><dd>{{if .Value}}{{.Value}}{{else}}–{{end}}</dd></div>
{{end}}</dl></details>
{{end}}<p class="quiet">Of this Traefik’s middlewares that count here. traefik-idem {{.Version}}</p></section>
<p class="quiet">The same numbers as <a href="stats.json">JSON</a> and as <a href="metrics">Prometheus metrics</a>.</p>
</div>
</div>
</main>
`

const pageStyle = `
:root{color-scheme:light dark;--ground:#faf9f6;--surface:#fff;--ink:#1c2430;--quiet:#5a6472;--line:#e3e0d8;--accent:#0f766e;--accent-soft:#bfe3de;--first:#8a94a3;--warn:#8a4b00;--warn-bar:#d97706;--warn-ground:#fff3dc;--bad:#b3261e;--bad-ground:#fdeceb;--good:#0f7a4a;--hover:#f3f1ea}
@media (prefers-color-scheme:dark){:root{--ground:#11151a;--surface:#181d24;--ink:#e8ebef;--quiet:#9aa5b3;--line:#2a313b;--accent:#3ec9b8;--accent-soft:#1d4f4a;--first:#77828f;--warn:#f3b562;--warn-bar:#f3b562;--warn-ground:#2f2412;--bad:#ff8a80;--bad-ground:#331a19;--good:#4fd08c;--hover:#1f252e}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums}
header,main{max-width:74rem;margin:0 auto;padding:0 1.5rem}
header{display:flex;flex-wrap:wrap;align-items:center;gap:.35rem .75rem;padding-top:1.25rem;padding-bottom:1.25rem}
h1{font-size:1.05rem;font-weight:650;margin:0;letter-spacing:-.01em}
h2{font-size:1.05rem;font-weight:650;margin:0}
p,dl,dd,figure,ul{margin:0;padding:0}
[hidden]{display:none!important}
.mark{width:1.75rem;height:1.75rem;fill:var(--accent)}
.mark .ghost{fill:none;stroke:var(--accent);stroke-width:2;stroke-dasharray:3 3}
.state,.clock{font-size:.875rem;color:var(--quiet)}
.state{margin-left:auto}
.dot{display:inline-block;width:.6rem;height:.6rem;border-radius:50%;margin-right:.45rem;background:var(--good)}
.dot.bad{background:var(--bad);border-radius:2px}
.quiet{color:var(--quiet);font-size:.875rem;font-weight:400}
.skip{position:absolute;left:-99rem}
.skip:focus{left:1rem;top:1rem;background:var(--surface);padding:.5rem 1rem;z-index:2}
a{color:var(--accent)}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
button,input{font:inherit;color:inherit}
#pause{border-color:var(--line);padding:.15rem .6rem;margin-left:.35rem}
#figures{display:grid;grid-template-columns:minmax(15rem,1fr) 2fr;gap:1.5rem 3rem;align-items:end;padding:1.25rem 0 2.25rem}
.huge{font-size:clamp(3.25rem,9vw,5.5rem);line-height:.95;font-weight:700;letter-spacing:-.04em;color:var(--accent)}
.what{font-size:1.2rem;font-weight:600;margin-top:.6rem}
#figures dl{display:grid;grid-template-columns:repeat(3,1fr);gap:1.5rem}
#figures dl div{border-top:2px solid var(--ink);padding-top:.6rem;align-self:stretch}
#figures .tile a{color:inherit}
#figures .tile.warn{border-color:var(--warn-bar)}
#figures .tile.bad{border-color:var(--bad)}
.tile.warn #needs{color:var(--warn)}
.tile.bad #needs{color:var(--bad)}
#look{padding-bottom:2.5rem}
h3,h4{font-size:.95rem;font-weight:650;margin:0}
.keys{margin:1.5rem 0 0}
.lookup{margin-left:auto;font-size:.875rem;color:var(--quiet);display:flex;flex-wrap:wrap;gap:.4rem;align-items:baseline}
.lookup input{margin-left:0}
button{font-size:.875rem;background:none;border:1px solid var(--first);border-radius:.4rem;padding:.35rem .8rem;cursor:pointer}
button:hover{background:var(--hover)}
button.danger{border-color:var(--bad);color:var(--bad);font-weight:600}
#keys ul{list-style:none;border-top:1px solid var(--line);max-height:26rem;overflow:auto}
#keys li{display:grid;grid-template-columns:10.5rem 9rem 1fr 16rem 8.5rem;gap:0 1rem;align-items:baseline;padding:.45rem 0;border-bottom:1px solid var(--line)}
#keys .name{display:block;font-weight:600}
#keys .id{white-space:nowrap}
#keys li time{font-size:.875rem;color:var(--quiet)}
.panel dt::first-letter{text-transform:uppercase}
#keys .bad .name,.panel .bad{color:var(--bad)}
#keys .warn .name,.panel .warn{color:var(--warn)}
.where{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.86rem;overflow-wrap:anywhere}
.acts a{margin-right:.6rem;white-space:nowrap}
.panel{background:var(--surface);border:1px solid var(--line);border-radius:.6rem;padding:1rem 1.25rem;margin-top:1rem;display:grid;gap:.6rem}
.confirm{display:grid;gap:.6rem;border-top:1px solid var(--line);padding-top:.75rem;max-width:46rem}
.confirm label{font-size:.875rem;color:var(--quiet)}
.fields{display:flex;flex-wrap:wrap;gap:.6rem 1.25rem}
textarea{display:block;width:100%;margin-top:.25rem;padding:.4rem .6rem;font:inherit;font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.86rem;color:var(--ink);background:var(--surface);border:1px solid var(--first);border-radius:.4rem}
.alert.good{background:var(--hover);border-color:var(--good)}
.calm{padding:.35rem 0}
#problems ul{list-style:none;border-top:1px solid var(--line);margin-top:.35rem}
#problems li{display:grid;grid-template-columns:3.5rem 11rem 1fr 9rem;gap:0 1rem;align-items:baseline;padding:.35rem 0;border-bottom:1px solid var(--line)}
#problems .count{text-align:right;font-weight:600}
#problems li :last-child{text-align:right}
#problems .none .count,#problems .none .name{color:var(--quiet);font-weight:400}
#problems .none .means{visibility:hidden}
#problems .warn .count,#problems .warn .name{color:var(--warn);font-weight:600}
#problems .bad .count,#problems .bad .name{color:var(--bad);font-weight:600}
#figures dt{font-size:.875rem;color:var(--quiet)}
#figures dd{font-size:1.6rem;font-weight:600;letter-spacing:-.02em;line-height:1.25}
#figures dd.quiet{font-size:.875rem;font-weight:400;letter-spacing:0}
#charts{display:grid;grid-template-columns:1fr 1fr;gap:1.5rem 3rem;padding-bottom:2.5rem}
figcaption,.axis{display:flex;justify-content:space-between;align-items:baseline;gap:1rem}
figcaption{font-size:.95rem;margin-bottom:.5rem;flex-wrap:wrap}
.legend{display:flex;gap:.9rem}
.key::before{content:"";display:inline-block;width:.6rem;height:.6rem;margin-right:.35rem;border-radius:2px;background:var(--accent)}
.key.trouble::before{background:var(--bad)}
.plot{position:relative}
.plot svg{display:block;width:100%;height:7.5rem;border-bottom:1px solid var(--first);background:linear-gradient(var(--line),var(--line)) 0 0/100% 1px no-repeat}
figure rect,.share rect{fill:var(--accent)}
figure rect.trouble,.share rect.trouble{fill:var(--bad)}
.share rect.refused{fill:var(--first)}
.share rect.warned{fill:var(--warn-bar)}
figure rect:hover,figure rect.chosen{fill:var(--ink)}
.ticks{display:block;width:100%;height:1.25rem;overflow:visible;font-size:.8rem;fill:var(--quiet)}
.ticks text{text-anchor:middle}
.ticks line{stroke:var(--first)}
.ticks .first{text-anchor:start}
.ticks .last{text-anchor:end}
.readout{min-height:1.5em}
figure summary{padding:.1rem 0;font-size:.875rem}
figure table{font-size:.875rem;margin-top:.25rem}
figure th,figure td{padding:.15rem .5rem .15rem 0}
figure th{position:static}
.axis{margin-top:.25rem}
.bar{display:flex;flex-wrap:wrap;align-items:baseline;gap:.5rem .9rem;margin-bottom:.75rem}
#filter{margin-left:auto;font-size:.875rem;color:var(--quiet)}
input{width:16rem;max-width:100%;margin-left:.4rem;padding:.35rem .6rem;color:var(--ink);background:var(--surface);border:1px solid var(--first);border-radius:.4rem}
input::placeholder{color:var(--quiet);opacity:1}
.scroll{overflow:auto;max-height:34rem;background:var(--surface);border:1px solid var(--line);border-radius:.6rem}
table{width:100%;table-layout:fixed;border-collapse:collapse;font-size:.925rem}
th.method{width:6.5rem}
th.host{width:21%}
th.number{width:9rem}
th.troubles{width:7rem}
th.last{width:8.5rem}
th,td{text-align:left;vertical-align:top;padding:.55rem 1rem}
th{position:sticky;top:0;background:var(--surface);font-size:.8rem;font-weight:600;color:var(--quiet);box-shadow:inset 0 -1px var(--line);white-space:nowrap}
th button{all:unset;cursor:pointer;border-radius:.2rem}
th button:hover{color:var(--ink)}
th button:focus-visible{outline:2px solid var(--accent);outline-offset:3px}
th[aria-sort]{color:var(--ink)}
th[aria-sort] button::after{content:" ↓"}
th[aria-sort=ascending] button::after{content:" ↑"}
tbody tr+tr td{border-top:1px solid var(--line)}
tbody tr:hover td{background:var(--hover)}
td.method{font-weight:650;font-size:.8rem;letter-spacing:.03em;line-height:1.75}
.host{color:var(--quiet);overflow-wrap:anywhere}
td.path{overflow-wrap:anywhere;font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.86rem}
.two{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:2;overflow:hidden}
.became{display:block;margin-top:.1rem;font-family:system-ui,sans-serif}
td.troubles{font-weight:400;color:var(--quiet)}
.some td.troubles{font-weight:600;color:var(--bad)}
.became span{display:inline-block;margin-right:.6rem;color:var(--quiet);font-size:.86rem}
.became .trouble{color:var(--bad);font-weight:600}
.became .warned{color:var(--warn);font-weight:600}
.small{display:none;margin-top:.15rem;color:var(--quiet);font-family:system-ui,sans-serif;font-size:.8rem}
.number{text-align:right;white-space:nowrap}
td.number{font-weight:600}
.last{white-space:nowrap;color:var(--quiet)}
.empty td{padding:2.5rem 1rem;text-align:center;color:var(--quiet)}
.share{display:block;width:100%;height:3px;margin-top:.2rem;background:var(--line);border-radius:2px}
#more{margin-top:.5rem}
.pair{display:grid;grid-template-columns:3fr 2fr;gap:2.5rem 3rem;padding:2.75rem 0 4rem;align-items:start}
.pair>div>section{margin-bottom:2.25rem}
.pair h2{padding-bottom:.5rem;border-bottom:2px solid var(--ink)}
#outcomes{list-style:none}
#outcomes li{display:grid;grid-template-columns:12.5rem 1fr auto;gap:0 1rem;align-items:baseline;padding-top:.45rem}
#outcomes .name{font-weight:550}
#outcomes .count{grid-column:3;grid-row:1;font-weight:600}
#outcomes .quiet{grid-column:2;grid-row:1}
#outcomes .share{grid-column:1/-1;height:2px;margin-top:.4rem}
#outcomes .none .name,#outcomes .none .count{color:var(--quiet);font-weight:400}
.first .share rect{fill:var(--first)}
.refused .share rect,.seen .share rect{fill:var(--warn)}
.trouble .share rect{fill:var(--bad)}
#outcomes .trouble .count{color:var(--bad)}
#memory{padding-top:.75rem}
#memory .share{height:6px;border-radius:3px;margin-top:.5rem}
.big{font-size:1.6rem;letter-spacing:-.02em;margin-right:.35rem}
.alert{padding:.75rem 1rem;border-radius:.5rem;border-left:4px solid;font-size:.925rem;margin:.75rem 0}
.alert.warn{background:var(--warn-ground);border-color:var(--warn)}
.alert.bad{background:var(--bad-ground);border-color:var(--bad)}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.9em;overflow-wrap:anywhere}
summary{cursor:pointer;padding:.6rem 0;color:var(--accent);font-size:.925rem}
.settings div{display:grid;grid-template-columns:12rem 1fr;gap:1rem;padding:.3rem 0;border-top:1px solid var(--line);font-size:.875rem}
.settings dt{color:var(--quiet)}
.settings dd{overflow-wrap:anywhere}
.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
@media (max-width:46rem){
header,main{padding-left:1rem;padding-right:1rem}
.state{margin-left:0}
.clock{width:100%}
#figures,#charts,.pair{grid-template-columns:1fr}
#figures{padding-top:.25rem}
#figures dl{grid-template-columns:1fr 1fr;gap:1rem 1.25rem}
#filter,#filter input{width:100%;margin-left:0}
.method,.host,.troubles{display:none}
.small{display:block}
#problems li{grid-template-columns:2.5rem 1fr auto}
#keys li{grid-template-columns:auto 1fr}
#keys .where,#keys li>.quiet,#keys .acts{grid-column:1/-1}
.lookup,.lookup input,.fields label,.fields input{width:100%;margin-left:0}
#problems .means{grid-column:2/-1;grid-row:2}
#problems .none .means{display:none}
th,td{padding:.55rem .6rem}
th.number{width:6.6rem}
th.last{width:4.9rem}
.last{white-space:normal}
#outcomes li{grid-template-columns:1fr auto}
#outcomes .count{grid-column:2}
#outcomes .quiet{grid-column:1;grid-row:2}
.settings div{grid-template-columns:1fr;gap:0}
}
@media (prefers-reduced-motion:no-preference){figure rect,.share rect{transition:fill .15s}}
@media print{.scroll{max-height:none;overflow:visible}#pause,#filter,.skip{display:none}}
`

const pageScript = `
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const rows = $("rows"), input = document.querySelector("#filter input"), pause = $("pause");
  const heads = [...document.querySelectorAll("th")];
  const collator = new Intl.Collator(undefined, {numeric: true});
  let key = "duplicates", down = true, paused = false;

  const local = (iso) => new Date(iso).toLocaleString(undefined, {dateStyle: "medium", timeStyle: "medium"});
  const times = () => {
    for (const t of document.querySelectorAll("time")) t.title = local(t.dateTime);
    for (const t of document.querySelectorAll("figure td time, time.exact")) t.textContent = local(t.dateTime);
    const clock = document.querySelector("#clock time");
    clock.textContent = new Date(clock.dateTime).toLocaleTimeString();
  };

  const several = (n, what) => n.toLocaleString() + " " + what + (n === 1 ? "" : "s");
  const chosen = {}; // by chart: the Unix time of the bar that is shown
  const charts = () => {
    for (const plot of document.querySelectorAll(".plot")) {
      const first = Number(plot.dataset.first), step = Number(plot.dataset.step);
      const counts = plot.dataset.counts.split(" ").map(Number), problems = plot.dataset.problems.split(" ").map(Number);
      const size = counts.length, readout = $(plot.id + "-value"), peak = readout.textContent;
      const bars = new Map();
      for (const bar of plot.querySelectorAll("rect")) {
        const at = Number(bar.getAttribute("x")) / 10;
        bars.set(at, [...(bars.get(at) ?? []), bar]);
      }
      const text = (i) => several(counts[i], "duplicate") + ", " + several(problems[i], "problem") + " · " +
        new Date((first + i * step) * 1000).toLocaleString(undefined, {weekday: "short", hour: "2-digit", minute: "2-digit"});
      for (const [i, of] of bars) for (const bar of of) bar.firstChild.textContent = text(i);
      const show = () => {
        const i = (chosen[plot.id] - first) / step, is = i >= 0 && i < size;
        for (const [at, of] of bars) for (const bar of of) bar.classList.toggle("chosen", is && at === i);
        readout.textContent = is ? text(i) : peak;
      };
      const choose = (i) => {
        chosen[plot.id] = first + Math.min(size - 1, Math.max(0, i)) * step;
        show();
      };
      const none = () => {
        delete chosen[plot.id];
        show();
      };
      const point = (event) => {
        const box = plot.getBoundingClientRect();
        choose(Math.floor((event.clientX - box.left) / box.width * size));
      };
      plot.tabIndex = 0;
      plot.setAttribute("role", "group");
      plot.setAttribute("aria-label", plot.querySelector("svg").getAttribute("aria-label") + " Arrow keys read the values.");
      plot.onpointermove = plot.onpointerdown = point;
      plot.onpointerleave = (event) => { if (event.pointerType === "mouse") none(); };
      plot.onblur = none;
      plot.onkeydown = (event) => {
        const now = plot.id in chosen ? (chosen[plot.id] - first) / step : size;
        const to = {ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: size - 1}[event.key];
        if (to !== undefined) {
          event.preventDefault();
          choose(to);
        } else if (event.key === "Escape") none();
      };
      show();
      if (step < 3600) continue;
      const ticks = plot.parentElement.querySelector(".ticks"), day = new Date(first * 1000), svg = ticks.namespaceURI, marks = [];
      for (day.setHours(24, 0, 0, 0); day < (first + size * step) * 1000; day.setDate(day.getDate() + 1)) {
        const tick = document.createElementNS(svg, "text");
        const x = (day / 1000 - first) * 100 / (size * step), line = document.createElementNS(svg, "line");
        for (const [name, value] of [["x1", x + "%"], ["x2", x + "%"], ["y2", 4]]) line.setAttribute(name, value);
        tick.setAttribute("x", x + "%");
        tick.setAttribute("y", 16);
        if (x < 95) tick.textContent = day.toLocaleDateString(undefined, {weekday: "short", day: "numeric"});
        marks.push(line, tick);
      }
      ticks.replaceChildren(...marks);
    }
  };

  const numbers = ["duplicates", "troubles", "last"];
  const value = (tr) => numbers.includes(key) ? Number(tr.dataset[key]) : tr.querySelector("." + key).firstChild?.textContent ?? "";
  const arrange = () => {
    const list = [...rows.rows].filter((tr) => !tr.classList.contains("empty"));
    if (list.length === 0) return;
    const values = new Map(list.map((tr) => [tr, value(tr)]));
    const compare = numbers.includes(key) ? (a, b) => a - b : collator.compare;
    list.sort((a, b) => (down ? -1 : 1) * compare(values.get(a), values.get(b)));
    rows.append(...list);
    const words = input.value.toLowerCase().split(" ").filter(Boolean);
    let shown = 0;
    for (const tr of list) {
      const cells = tr.cells;
      const text = (cells[0].textContent + " " + cells[1].textContent + cells[2].firstChild.textContent).toLowerCase();
      tr.hidden = !words.every((word) => text.includes(word));
      if (!tr.hidden) shown++;
    }
    $("nohit").hidden = shown > 0;
    const count = shown === list.length ? String(shown) : shown + " of " + list.length;
    const text = count + (list.length === 1 ? " endpoint" : " endpoints");
    if ($("shown").textContent !== text) $("shown").textContent = text;
    for (const th of heads) {
      if (th.dataset.key === key) th.setAttribute("aria-sort", down ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    }
  };

  // swap shows a part anew if it is not as it was served, and leaves focus and what was opened or chosen.
  let focused = "";
  const served = new Map([...document.querySelectorAll("[data-live]")].map((part) => [part.id, part.outerHTML]));
  const swap = (shown, now) => {
    if (served.get(now.id) === now.outerHTML) return;
    served.set(now.id, now.outerHTML);
    const kept = {...chosen};
    if (shown.contains(document.activeElement)) focused = document.activeElement.id;
    const open = [...shown.querySelectorAll("details[open]")].map((d) => d.id);
    shown.innerHTML = now.innerHTML;
    shown.className = now.className;
    for (const id of open) if ($(id)) $(id).open = true;
    Object.assign(chosen, kept);
  };

  // A page that takes long, as one with a thousand endpoints does, is asked for less often.
  let timer = 0;
  const refresh = async () => {
    clearTimeout(timer);
    const begin = performance.now();
    if (!paused && !document.hidden) await load();
    clearTimeout(timer);
    timer = setTimeout(refresh, Math.max(5000, 40 * (performance.now() - begin)));
  };
  const load = async () => {
    try {
      const here = new URL("./", location.origin + location.pathname); // without a login, which fetch refuses
      const response = await fetch(here, {cache: "no-store"});
      if (!response.ok) throw new Error("Traefik answers " + response.status + ".");
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      for (const now of page.querySelectorAll("[data-live]")) {
        if ($(now.id)) swap($(now.id), now);
      }
      rows.replaceChildren(...page.getElementById("rows").children);
    } catch (err) {
      const p = document.createElement("p");
      p.className = "alert bad";
      p.textContent = "The page cannot be refreshed. " + err.message;
      $("trouble").replaceChildren(p);
    }
    arrange();
    charts();
    times();
    if (focused && $(focused)) $(focused).focus({preventScroll: true});
    focused = "";
  };

  for (const th of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = th.textContent;
    button.addEventListener("click", () => {
      down = th.dataset.key === key ? !down : numbers.includes(th.dataset.key);
      key = th.dataset.key;
      arrange();
    });
    th.replaceChildren(button);
  }
  input.addEventListener("input", arrange);
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Resume" : "Pause";
    refresh();
  });
  $("filter").hidden = false;
  pause.hidden = false;
  charts();
  times();
  timer = setTimeout(refresh, 5000);
  document.addEventListener("visibilitychange", refresh);
})();
`
