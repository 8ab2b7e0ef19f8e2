/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `pleach_key` (
  `name` varbinary(3072) NOT NULL,
  `seq` bigint(20) NOT NULL,
  `create_revision` bigint(20) NOT NULL,
  `mod_revision` bigint(20) NOT NULL,
  `version` bigint(20) NOT NULL,
  `lease` bigint(20) NOT NULL,
  PRIMARY KEY (`name`),
  KEY `pleach_key_lease` (`lease`)
) ENGINE=InnoDB DEFAULT CHARSET=latin1 COLLATE=latin1_swedish_ci ROW_FORMAT=DYNAMIC;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `pleach_key` VALUES (0x2F6D6172696164622F6669727374,5,0,17408,0,0);
INSERT INTO `pleach_key` VALUES (0x2F6D6172696164622F6C6561736564,11,16384,55296,3,7777);
INSERT INTO `pleach_key` VALUES (0x2F6D6172696164622F6D616E79,9,14336,53248,3,0);
INSERT INTO `pleach_key` VALUES (0x2F6D6172696164622FC3BC0130,3,15360,15360,1,0);
INSERT INTO `pleach_key` VALUES (0x2F6D6172696164622FC3BC0131,7,36864,36864,1,0);
INSERT INTO `pleach_key` VALUES (0x2F6D6172696164622FC3BC0132,10,54272,54272,1,0);
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `pleach_log` (
  `seq` bigint(20) NOT NULL,
  `revision` bigint(20) NOT NULL,
  `name` varbinary(3072) NOT NULL,
  `prev_seq` bigint(20) NOT NULL,
  `create_revision` bigint(20) NOT NULL,
  `version` bigint(20) NOT NULL,
  `lease` bigint(20) NOT NULL,
  `value` longblob NOT NULL,
  PRIMARY KEY (`seq`),
  KEY `pleach_log_revision` (`revision`)
) ENGINE=InnoDB DEFAULT CHARSET=latin1 COLLATE=latin1_swedish_ci ROW_FORMAT=DYNAMIC;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `pleach_log` VALUES (1,3072,0x2F6D6172696164622F6669727374,0,3072,1,0,0x31);
INSERT INTO `pleach_log` VALUES (2,14336,0x2F6D6172696164622F6D616E79,0,14336,1,0,0x76616C75652030);
INSERT INTO `pleach_log` VALUES (3,15360,0x2F6D6172696164622FC3BC0130,0,15360,1,0,'');
INSERT INTO `pleach_log` VALUES (4,16384,0x2F6D6172696164622F6C6561736564,0,16384,1,7777,0x6C6561736564);
INSERT INTO `pleach_log` VALUES (5,17408,0x2F6D6172696164622F6669727374,1,0,0,0,'');
INSERT INTO `pleach_log` VALUES (6,35840,0x2F6D6172696164622F6D616E79,2,14336,2,0,0x76616C75652031);
INSERT INTO `pleach_log` VALUES (7,36864,0x2F6D6172696164622FC3BC0131,0,36864,1,0,'');
INSERT INTO `pleach_log` VALUES (8,37888,0x2F6D6172696164622F6C6561736564,4,16384,2,7777,0x6C6561736564);
INSERT INTO `pleach_log` VALUES (9,53248,0x2F6D6172696164622F6D616E79,6,14336,3,0,0x76616C75652032);
INSERT INTO `pleach_log` VALUES (10,54272,0x2F6D6172696164622FC3BC0132,0,54272,1,0,'');
INSERT INTO `pleach_log` VALUES (11,55296,0x2F6D6172696164622F6C6561736564,8,16384,3,7777,0x6C6561736564);
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `pleach_meta` (
  `name` varbinary(64) NOT NULL,
  `value` bigint(20) NOT NULL,
  `note` varbinary(1024) DEFAULT NULL,
  PRIMARY KEY (`name`)
) ENGINE=InnoDB DEFAULT CHARSET=latin1 COLLATE=latin1_swedish_ci ROW_FORMAT=DYNAMIC;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `pleach_meta` VALUES (0x65706F6368,1,0x6E6F64652060726F6F7460206F6E20766D202870726F636573732033303130362C206174203132372E302E302E313A323630313429);
INSERT INTO `pleach_meta` VALUES (0x736368656D61,1,NULL);
INSERT INTO `pleach_meta` VALUES (0x756E74696C,1795960472262,NULL);
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `pleach_record` (
  `name` varbinary(512) NOT NULL,
  `value` longblob NOT NULL,
  PRIMARY KEY (`name`)
) ENGINE=InnoDB DEFAULT CHARSET=latin1 COLLATE=latin1_swedish_ci ROW_FORMAT=DYNAMIC;
/*!40101 SET character_set_client = @saved_cs_client */;
