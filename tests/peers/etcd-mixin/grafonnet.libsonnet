// As much of grafonnet as the dashboard's queries need: they are kept, and their legends are not.
{
  query: {
    prometheus: {
      new(datasource, expression):: { expr: expression },
      withLegendFormat(text):: {},
    },
  },
}
