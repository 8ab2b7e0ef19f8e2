// etcd-mixin's alerts as they are, and what the panels of its dashboard ask for as rules beside them, with values in the
// place of Grafana's variables.
local mixin = (import 'config.libsonnet') + (import 'alerts/alerts.libsonnet');
local panels = (import 'dashboards/targets.libsonnet')({ datasource: { name: 'datasource' } }, mixin._config);
local asked(expression) = std.strReplace(std.strReplace(expression, '$cluster', 'etcd'), '$__rate_interval', '1m');

mixin.prometheusAlerts {
  groups+: [{
    name: 'dashboard',
    rules: [{ record: 'dashboard:' + name, expr: asked(panels[name].expr) } for name in std.objectFields(panels)],
  }],
}
